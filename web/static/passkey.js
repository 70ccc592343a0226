// Passkeys: the one thing on these pages that cannot be done without JavaScript. A part of a page that offers it stays hidden until this file
// has found out that the browser can. Two requests go to the server: "begin" brings the options, "finish" takes what the device has signed.

const text = {
  NotAllowedError: "It was cancelled, or took too long.",
  InvalidStateError: "This device has a passkey for this account already.",
  NotSupportedError: "This device cannot make the kind of passkey that is needed.",
  SecurityError: "The browser does not allow passkeys under this address.",
};

async function post(path, token, body) {
  const answer = await fetch(path, {
    method: "POST", credentials: "same-origin", redirect: "error",
    headers: { "Content-Type": "application/json", "Accept": "application/json", "X-Skein-Token": token },
    body: JSON.stringify(body),
  });
  const value = await answer.json();
  if (!answer.ok) {
    throw new Error(value.detail);
  }
  return value;
}

async function run(part) {
  const { begin, finish, token, to } = part.dataset;
  const name = part.dataset.name ? document.querySelector(part.dataset.name).value : "";
  const { options, state } = await post(begin, token, { name });
  let credential;
  if (part.dataset.passkey === "sign in") {
    credential = await navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options.publicKey) });
  } else {
    credential = await navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options.publicKey) });
  }
  const { next } = await post(finish, token, { name, to, state, response: credential.toJSON() });
  location.assign(next);
}

const able = window.PublicKeyCredential && PublicKeyCredential.parseRequestOptionsFromJSON && PublicKeyCredential.parseCreationOptionsFromJSON;
for (const part of able ? document.querySelectorAll("[data-passkey]") : []) {
  const button = part.querySelector("button"), fault = part.querySelector(".fault");
  part.hidden = false;
  button.addEventListener("click", async () => {
    button.disabled = true;
    fault.hidden = true;
    try {
      await run(part);
    } catch (e) {
      const said = text[e.name] || e.message || "That did not work.";
      fault.textContent = said[0].toUpperCase() + said.slice(1) + (/[.!?]$/.test(said) ? "" : ".");
      fault.hidden = false;
      button.disabled = false;
    }
  });
}
