// A person with Chromium who lets a machine in: opens the address that the client printed, signs in with the provider, gives
// consent, and adds the machine. It prints one JSON object with what was on the pages.
//
//	node browser.mjs '{"url": "…/register/…", "provider": "Our company", "name": "anna", "shots": "/tmp/x", "width": 390}'
//
// With "steps": "signin" it stops on the page that asks whether to add the machine.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { chromium } from 'playwright-core'

const o = JSON.parse(process.argv[2])
const said = { pages: [], faults: [] }
// There may be no /etc/fonts where this runs, and Chromium does without fonts only badly.
const home = mkdtempSync(join(tmpdir(), 'fonts-'))
writeFileSync(join(home, 'fonts.conf'), `<fontconfig><dir>/usr/share/fonts</dir><cachedir>${home}</cachedir></fontconfig>`)

const browser = await chromium.launch({
  env: { ...process.env, FONTCONFIG_FILE: join(home, 'fonts.conf') },
  executablePath: o.chromium || '/usr/bin/chromium', args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'], timeout: 120000,
})
try {
  const context = await browser.newContext({ viewport: { width: o.width || 1280, height: 800 }, javaScriptEnabled: o.javascript !== false })
  context.setDefaultTimeout(120000)
  const page = await context.newPage()
  page.on('pageerror', (e) => said.faults.push(String(e)))
  // Browsers also complain about pages that are errors, and about a header that means nothing without TLS.
  const expected = /Failed to load resource|Cross-Origin-Opener-Policy header has been ignored/
  page.on('console', (m) => { if (m.type() === 'error' && !expected.test(m.text())) said.faults.push(m.text()) })
  const look = async (name) => {
    said.pages.push({ name, url: page.url(), title: await page.title(), text: await page.innerText('body') })
    if (o.shots) await page.screenshot({ path: `${o.shots}/${name}-${o.width || 1280}.png`, fullPage: true })
  }
  await page.goto(o.url)
  await look('register')
  await page.getByRole('link', { name: `Continue with ${o.provider}` }).click()
  await page.getByPlaceholder('Enter any login').fill(o.name)
  await page.getByPlaceholder('and password').fill('any')
  await page.getByRole('button', { name: 'Sign-in' }).click()
  await page.getByRole('button', { name: 'Continue' }).click()
  await page.waitForURL((u) => String(u).startsWith(new URL(o.url).origin))
  await look('confirm')
  if (o.steps !== 'signin') {
    await page.getByRole('button', { name: 'Add the machine' }).click()
    await page.waitForURL((u) => u.pathname.startsWith('/machines/'))
    await look('added')
  }
  said.cookies = (await context.cookies()).filter((c) => c.name.includes('skein-oidc'))
} catch (e) {
  said.error = String(e)
  try {
    const p = browser.contexts()[0].pages()[0]
    said.pages.push({ name: 'last', url: p.url(), title: await p.title(), text: await p.innerText('body') })
    if (o.shots) await p.screenshot({ path: `${o.shots}/last.png`, fullPage: true })
  } catch {}
} finally {
  await browser.close()
  rmSync(home, { recursive: true, force: true })
}
console.log(JSON.stringify(said))
