// A person with Chromium. It takes a list of steps as JSON from its argument, does them one after the other, and prints what was seen after
// each as JSON. A step waits for what it needs and for the text in "see"; when it fails, the list ends there and "error" says why.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const o = JSON.parse(process.argv[2])
const { chromium } = await import(o.playwright)
const said = { steps: [], faults: [], error: '' }
const home = mkdtempSync(join(tmpdir(), 'person-')) // a host of a test network has no /etc/fonts
writeFileSync(join(home, 'fonts.conf'), `<fontconfig><dir>/usr/share/fonts</dir><cachedir>${home}</cachedir></fontconfig>`)
const browser = await chromium.launch({
  executablePath: o.chromium, timeout: 120000, env: { ...process.env, FONTCONFIG_FILE: join(home, 'fonts.conf') },
  args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'],
})

// What a person with a small screen, a keyboard or a screen reader would stumble over.
const audit = () => {
  const bad = []
  const name = (e) => (e.outerHTML.length > 120 ? e.outerHTML.slice(0, 120) + '…' : e.outerHTML)
  const seen = (e) => e.checkVisibility()
  if (document.documentElement.scrollWidth > window.innerWidth) bad.push(`scrolls sideways at ${window.innerWidth}`)
  if (document.querySelectorAll('h1').length !== 1) bad.push('has not one h1')
  if (!document.documentElement.lang) bad.push('has no language')
  for (const tag of ['header', 'main', 'footer']) if (!document.querySelector(tag)) bad.push(`has no ${tag}`)
  for (const e of document.querySelectorAll('input:not([type=hidden]), select')) {
    if (seen(e) && !(e.labels && e.labels.length) && !e.getAttribute('aria-label')) bad.push('no label: ' + name(e))
  }
  for (const e of document.querySelectorAll('button, .button, summary, nav a, input:not([type=hidden]):not([type=checkbox]), select, a.row')) {
    const r = e.getBoundingClientRect()
    if (seen(e) && (r.height < 43.5 || r.width < 43.5)) bad.push(`${Math.round(r.width)}×${Math.round(r.height)} is small for a finger: ` + name(e))
  }
  for (const e of document.querySelectorAll('[id]')) if (document.querySelectorAll('#' + CSS.escape(e.id)).length > 1) bad.push('id twice: ' + e.id)
  for (const e of document.querySelectorAll('[aria-describedby], [aria-labelledby]')) {
    for (const id of (e.getAttribute('aria-describedby') || e.getAttribute('aria-labelledby')).split(' ')) if (!document.getElementById(id)) bad.push('describes nothing: ' + name(e))
  }
  let last = 1
  for (const e of document.querySelectorAll('h1, h2, h3')) {
    const n = Number(e.tagName[1])
    if (seen(e) && n > last + 1) bad.push('a heading is skipped: ' + name(e))
    if (seen(e)) last = n
  }
  return bad
}

let page
try {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, javaScriptEnabled: o.scripts !== false, ignoreHTTPSErrors: true })
  context.setDefaultTimeout(o.patience || 120000)
  page = await context.newPage()
  page.on('pageerror', (e) => said.faults.push(String(e)))
  // Browsers complain as well about pages that are errors, and about a header that means nothing without TLS.
  const expected = /Failed to load resource|Cross-Origin-Opener-Policy header has been ignored/
  page.on('console', (m) => { if (m.type() === 'error' && !expected.test(m.text())) said.faults.push(m.text()) })
  for (const s of o.steps) {
    switch (s.do) {
      case 'open': await page.goto(s.text); break
      case 'type': await page.getByLabel(s.name, { exact: true }).fill(s.text); break
      case 'choose': await page.getByLabel(s.name, { exact: true }).selectOption({ label: s.text }); break
      case 'tick': await page.getByLabel(s.name).check(); break
      case 'unfold': await page.getByText(s.name, { exact: true }).click(); break
      case 'press': await page.getByRole('button', { name: s.name, exact: true }).first().click(); break
      case 'follow': await page.getByRole('link', { name: s.name }).first().click(); break
      case 'authenticator': { // a device with a fingerprint reader that always says yes
        const cdp = await context.newCDPSession(page)
        await cdp.send('WebAuthn.enable')
        await cdp.send('WebAuthn.addVirtualAuthenticator', { options: {
          protocol: 'ctap2', transport: 'internal', hasResidentKey: true, hasUserVerification: true, isUserVerified: true, automaticPresenceSimulation: true,
        } })
        break
      }
      case 'look': {
        const faults = []
        for (const [width, scheme] of [[1280, 'light'], [390, 'light'], [390, 'dark'], [320, 'light']]) {
          await page.setViewportSize({ width, height: 800 })
          await page.emulateMedia({ colorScheme: scheme })
          if (o.scripts !== false) faults.push(...(await page.evaluate(audit)).map((f) => `${width}: ${f}`))
          if (o.shots && width !== 320) await page.screenshot({ path: `${o.shots}/${s.name}-${width}-${scheme}.png`, fullPage: true })
        }
        await page.setViewportSize({ width: 1280, height: 800 })
        await page.emulateMedia({ colorScheme: 'light' })
        said.faults.push(...faults.map((f) => `${s.name}: ${f}`))
        break
      }
      default: throw new Error(`no such step: ${s.do}`)
    }
    if (s.see) await page.getByText(s.see).first().waitFor()
    said.steps.push({ url: page.url(), title: await page.title(), text: await page.innerText('body'), focus: o.scripts === false ? '' : await page.evaluate(() => document.activeElement.id) })
  }
} catch (e) {
  said.error = String(e)
  try {
    said.steps.push({ url: page.url(), title: await page.title(), text: await page.innerText('body') })
    if (o.shots) await page.screenshot({ path: `${o.shots}/failed.png`, fullPage: true })
  } catch {}
} finally {
  await browser.close()
  rmSync(home, { recursive: true, force: true })
}
console.log(JSON.stringify(said))
