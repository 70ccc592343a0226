package api

import (
	"embed"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"sync"
)

// sources are the files with the types of requests and answers, for the sake of the comments in them.
//
//go:embed admin.go apikey.go attribute.go audit.go cluster.go dns.go event.go explain.go headscale.go health.go login.go node.go oauthclient.go page.go
//go:embed netmap.go policy.go preauthkey.go problem.go route.go service.go settings.go sshcheck.go status.go user.go webhook.go
var sources embed.FS

// comments are the comments on types and on their fields, by "Type" and "Type.Field".
var comments = sync.OnceValue(func() map[string]string {
	out := map[string]string{}
	files, err := sources.ReadDir(".")
	if err != nil {
		panic(err)
	}
	fset := token.NewFileSet()
	for _, f := range files {
		b, err := sources.ReadFile(f.Name())
		if err != nil {
			panic(err)
		}
		file, err := parser.ParseFile(fset, f.Name(), b, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			panic(fmt.Sprintf("this program's own %s: %v", f.Name(), err))
		}
		for _, decl := range file.Decls {
			if g, ok := decl.(*ast.GenDecl); ok && g.Tok == token.TYPE {
				for _, spec := range g.Specs {
					typeComments(out, g, spec.(*ast.TypeSpec))
				}
			}
		}
	}
	return out
})

func typeComments(out map[string]string, g *ast.GenDecl, t *ast.TypeSpec) {
	doc := t.Doc
	if doc == nil && !g.Lparen.IsValid() {
		doc = g.Doc
	}
	out[t.Name.Name] = unwrapped(doc)
	s, ok := t.Type.(*ast.StructType)
	if !ok {
		return
	}
	for _, f := range s.Fields.List {
		text := strings.TrimSpace(unwrapped(f.Doc) + " " + unwrapped(f.Comment))
		for _, name := range f.Names {
			out[t.Name.Name+"."+name.Name] = text
		}
	}
}

func unwrapped(c *ast.CommentGroup) string {
	return strings.Join(strings.Fields(c.Text()), " ")
}
