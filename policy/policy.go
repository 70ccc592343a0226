// Package policy decides who reaches what. It is pure: values in, values out, no clock, no I/O.
//
// # From text to answers
//
//	text ──Parse──▶ Policy ──Compile(users, nodes)──▶ Compiled ──With(old, new)──▶ Compiled ──▶ …
//	                                                     │
//	     FilterFor, Filters   what a node lets in        │   SSHFor          who may open a session, and as whom
//	     Sees, Routes         whom and what it is shown  │   AttrsFor        node attributes, address pools
//	     Explain, Diff, Test  for people                 │   ApprovesRoute…  approvals, MayTag
//
// Parse understands the whole language of the hosted service (docs/policy.md has the table) and reports all faults with
// line and column. Compile resolves the rules; it fails only for domains that are not the tailnet's.
//
// # How it stays fast
//
// A set is one src or dst list; rules with the same list share it. For each node a row of bits says which sets hold it:
// by its tags or its user (looked up), its addresses and approved routes (compared). Nodes with the same row are one
// Class. Whether two nodes see each other is then a fact between classes, an AND of two rows of bits; and the addresses of a
// set are those of the classes in it. A node that joins or changes touches its class and the lists of its sets, nothing
// else: With copies a few slices and shares the rest. autogroup:self is no class of its own for each user but a relation
// between the nodes of one user, looked up by user.
//
// # Meaning of the parts of a rule
//
// A rule only ever allows. A node is a source with its addresses, and with its approved subnet routes where they meet the addresses
// in the rule; "*" is the tailnet's addresses and all approved subnet routes. It is a destination with its own addresses where the
// rule names it (tag, user, group, address), with its approved subnet routes where they meet the rule's addresses, and as an
// exit node for autogroup:internet. Routes that are advertised and not approved never count. Both ends of an allowed
// pair see each other. See docs/policy.md for the traps.
package policy
