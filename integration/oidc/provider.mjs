// An identity provider for tests: oidc-provider with its own pages for signing in and consent. Whoever signs in as NAME, with any
// password, is the subject NAME with the address NAME@example.com. It prints "ready ISSUER" and runs until its input
// ends, or with "stay" for ever.
//
//	node provider.mjs '{"listen": "127.0.0.1:0", "client_id": "skein", "client_secret": "…", "redirect_uris": ["…"]}'
//
// Lines of JSON on its input change it: {"name": "anna", "claims": {...}} what is said about somebody, {"name": "anna", "gone": true}
// that the account is closed.
import { createServer } from 'node:http'
import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { createInterface } from 'node:readline'
import { Provider } from 'oidc-provider'

const o = JSON.parse(process.argv[2])
const people = new Map()

const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
const jwk = { ...privateKey.export({ format: 'jwk' }), kid: 'test', use: 'sig', alg: 'RS256' }

const configuration = {
  clients: [{
    client_id: o.client_id,
    client_secret: o.client_secret || undefined,
    token_endpoint_auth_method: o.auth_method || (o.client_secret ? 'client_secret_basic' : 'none'),
    redirect_uris: o.redirect_uris,
    post_logout_redirect_uris: o.post_logout_redirect_uris || [],
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
  }],
  jwks: { keys: [jwk] },
  cookies: { keys: [randomBytes(16).toString('hex')] },
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name', 'preferred_username', 'picture'], groups: ['groups'] },
  scopes: ['openid', 'offline_access', 'email', 'profile', 'groups'],
  pkce: { required: () => true },
  features: { devInteractions: { enabled: true }, rpInitiatedLogout: { enabled: true } },
  issueRefreshToken: (ctx, client, code) => code.scopes.has('offline_access'),
  ttl: { AccessToken: 600, AuthorizationCode: 60, IdToken: 600, Interaction: 600, Session: 600, Grant: 600, RefreshToken: 3600 },
  async findAccount(ctx, name) {
    const p = people.get(name) || {}
    if (p.gone) return undefined
    return {
      accountId: name,
      claims: () => ({
        sub: name, email: `${name}@example.com`, email_verified: true, preferred_username: name,
        name: name[0].toUpperCase() + name.slice(1), picture: `https://example.com/${name}.png`, groups: ['staff'], ...p.claims,
      }),
    }
  },
}

const [host, port] = o.listen.split(':')
const server = createServer()
server.listen(Number(port), host, () => {
  const issuer = o.issuer || `http://${host}:${server.address().port}`
  const provider = new Provider(issuer, configuration)
  provider.on('server_error', (ctx, err) => console.error(err))
  provider.on('grant.error', (ctx, err) => console.error(`grant: ${err.message} ${err.error_detail || ''}`))
  server.on('request', provider.callback())
  console.log(`ready ${issuer}`)
})

createInterface({ input: process.stdin }).on('line', (line) => {
  const { name, ...rest } = JSON.parse(line)
  people.set(name, rest)
  console.log(`changed ${name}`)
}).on('close', () => { if (!o.stay) process.exit(0) })
