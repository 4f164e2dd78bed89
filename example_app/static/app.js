// The example's page: one image, one customer, and counts that are read again after every step.
"use strict";

const MAX_BYTES = 20 * 1024 * 1024;
const POLL_MS = 1000;
const $ = (id) => document.getElementById(id);

const state = { image: null, signed: null, totals: new Map() };
const key = () => document.querySelector("[name=key]:checked").value;

/** Call the API as the chosen customer; throws an Error that is fit to show. */
async function call(path, options = {}) {
  const headers = { Authorization: `Bearer ${key()}`, ...options.headers };
  let response;
  try {
    response = await fetch(`/api/${path}`, { ...options, headers });
  } catch {
    throw new Error("The server cannot be reached.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const wait = response.headers.get("Retry-After");
  throw new Error((body.error ?? `The server answered ${response.status}.`) +
    (response.status === 429 && wait ? `. Try again in ${wait} s.` : ""));
}

function upload(path, blob, name) {
  const body = new FormData();
  body.append("file", blob, name);
  return call(path, { method: "POST", body });
}

// -- The image ----------------------------------------------------------------------------------

function show(img, blob) {
  if (img.src) URL.revokeObjectURL(img.src);
  img.src = URL.createObjectURL(blob);
  img.hidden = false;
}

function choose(file) {
  if (!file) return;
  forget();
  if (file.size > MAX_BYTES) return say("bad", "Too large", `${file.name} has more than 20 MB.`);
  if (!["image/jpeg", "image/png"].includes(file.type)) {
    return say("bad", "Not supported", `${file.name} is neither JPEG nor PNG.`);
  }
  state.image = file;
  show($("preview"), file);
  $("picture").toggleAttribute("hidden", true);
  $("file-name").textContent = file.name;
  $("file-facts").textContent = `${size(file.size)} · choose another`;
  busy(false);
}

/** Drop what belonged to the previous image or customer. */
function forget() {
  state.signed = null;
  $("signed").hidden = true;
  $("result").hidden = true;
}

function size(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} KB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function busy(is) {
  for (const id of ["sign", "verify", "verify-signed", "verify-altered", "times"]) {
    $(id).disabled = is || !state.image;
  }
}

/** Run one step with the buttons off, then show its error, if any, and the new counts. */
async function step(work) {
  const pressed = document.activeElement;
  busy(true);
  try {
    await work();
  } catch (error) {
    say("bad", "That did not work", error.message);
  }
  busy(false);
  if (document.activeElement === document.body) pressed.focus(); // a disabled button loses it
  await refresh();
}

function say(mood, verdict, detail, billed = "") {
  $("result").className = `result ${mood}`;
  $("verdict").textContent = verdict;
  $("detail").textContent = detail;
  $("billed").textContent = billed;
  $("result").hidden = false;
}

const times = () => Number($("times").value);

/** Do *once* as often as was asked for, and say how far it has come. */
async function repeat(verb, once) {
  let answer;
  for (let number = 1; number <= times(); number++) {
    try {
      answer = await once();
    } catch (error) {
      throw number === 1 ? error : new Error(`${verb} ${number - 1} of ${times()}, then: ${error.message}`);
    }
    if (number < times()) say("busy", `${verb} ${number} of ${times()}`, "");
  }
  return answer;
}

const counted = (unit) => `counted as ${times()} ${unit}${times() > 1 ? "s" : ""}`;

async function sign() {
  forget();
  const response = await repeat("Signed",
    () => upload("sign", state.image, state.image.name));
  const manifest = response.headers.get("X-Manifest-Id");
  const extension = state.image.type === "image/png" ? "png" : "jpeg";
  const name = `${state.image.name.replace(/\.[^.]*$/, "")}-signed.${extension}`;
  state.signed = new File([await response.blob()], name, { type: state.image.type });
  show($("signed-image"), state.signed);
  $("manifest").textContent = manifest;
  $("download").href = $("signed-image").src;
  $("download").download = name;
  $("signed").hidden = false;
  say("good", "Signed", "The image now carries its content credentials.", counted("sign"));
}

const VERDICTS = {
  Trusted: ["good", "Authentic", "Signed by this service and unchanged since"],
  Valid: ["good", "Unchanged", "Signed by an issuer this service does not know, and unchanged since"],
  Invalid: ["bad", "Changed after signing", "The image is not what was signed"],
  NoManifest: ["warn", "No credentials", "This image was never signed, or its credentials were removed."],
};

async function verify(file) {
  const answer = await repeat("Verified", () => upload("verify", file, file.name));
  const found = await answer.json();
  const [mood, verdict, text] = VERDICTS[found.state] ?? ["warn", found.state, ""];
  const reasons = found.failures.length ? `: ${found.failures.join(", ")}` : "";
  const full = found.state === "NoManifest" ? text : `${text}${reasons}.`;
  say(mood, verdict, full, found.verification_result ? counted("verify") : "not counted");
}

/** A copy of the signed image with one byte of its picture changed. */
async function altered() {
  const bytes = new Uint8Array(await state.signed.arrayBuffer());
  bytes[bytes.length - 32] ^= 1;
  return new File([bytes], state.signed.name, { type: state.signed.type });
}

// -- The counts ---------------------------------------------------------------------------------

let asked = 0;

async function refresh() {
  const question = ++asked;
  try {
    const answers = await Promise.all([call("usage"), call("alerts")]);
    const [usage, { alerts }] = await Promise.all(answers.map((answer) => answer.json()));
    if (question !== asked) return; // an answer for another customer, or an older one
    draw(usage);
    drawAlerts(alerts);
    $("offline").textContent = "";
  } catch (error) {
    if (question === asked) $("offline").textContent = `${error.message} The counts may be old.`;
  }
}

function draw({ customer, usage }) {
  if ($("meters").dataset.customer !== customer) {
    $("meters").replaceChildren();
    $("meters").dataset.customer = customer;
    state.totals.clear();
  }
  for (const row of usage) drawMeter(row);
  if (usage.length) $("period").textContent = period(usage[0].period);
}

function drawMeter(row) {
  const item = $(`meter-${row.meter}`) ?? addMeter(row);
  const total = Number(row.total);
  const included = row.included === null ? null : Number(row.included);
  const number = item.querySelector(".total");
  item.className = [row.level ?? "", total > 0 ? "used" : ""].join(" ");
  item.querySelector(".value").textContent = count(total);
  item.querySelector(".of").textContent = included === null ? "" : ` of ${count(included)}`;
  item.querySelector(".note").textContent = note(row, total, included);
  const bar = item.querySelector("progress");
  bar.max = included || 1;
  bar.value = Math.min(total, bar.max);
  if (state.totals.has(row.meter) && state.totals.get(row.meter) !== total) {
    number.classList.remove("moved");
    void number.offsetWidth; // restarts the animation
    number.classList.add("moved");
  }
  state.totals.set(row.meter, total);
}

function addMeter(row) {
  const item = document.createElement("li");
  item.id = `meter-${row.meter}`;
  item.innerHTML = `<div class="meter-line"><b></b><span class="total"><span class="value"></span><span
    class="of"></span></span></div><progress></progress><small class="note"></small>`;
  item.querySelector("b").textContent = row.display_name;
  item.querySelector("progress").setAttribute("aria-label", `${row.display_name}, used of included`);
  $("meters").append(item);
  return item;
}

function note(row, total, included) {
  const each = row.price?.unit_amount ?? row.price?.tiers?.[0].unit_amount;
  const price = each && (Number(each) / 100).toLocaleString("en-US",
    { style: "currency", currency: row.price.currency, maximumFractionDigits: 4 });
  const beyond = included === null ? 0 : Math.max(0, total - included);
  if (beyond) return `${count(beyond)} beyond the plan${price ? `, ${price} per ${row.unit}` : ""}`;
  return price ? `then ${price} per ${row.unit}` : "";
}

const count = (number) => number.toLocaleString("en-US", { maximumFractionDigits: 3 });

function period({ start, end }) {
  const day = (moment) => new Date(moment).toLocaleDateString("en-GB",
    { day: "numeric", month: "short", timeZone: "UTC" });
  return `${day(start)} to ${day(new Date(end) - 1)}`;
}

// -- Alerts -------------------------------------------------------------------------------------

const PLACES = [["app", "In the app"], ["mail", "Mail"], ["webhook", "Webhook"], ["signal", "Signal"]];

/** One line of words about what came to a place. */
const PROOFS = {
  app: () => "on the dashboard",
  mail: (came) => `“${came.subject}” to ${came.to}`,
  webhook: (came) => `level “${came.payload.level}”, signature valid`,
  signal: () => "usage_alert, received in the app",
};

function drawAlerts(alerts) {
  $("no-alerts").hidden = alerts.length > 0;
  const text = JSON.stringify(alerts);
  if ($("alerts").dataset.drawn === text) return; // what is open stays open
  $("alerts").dataset.drawn = text;
  $("alerts").replaceChildren(...alerts.map(alertItem));
}

function alertItem(alert) {
  const item = element("li", alert.level);
  const share = alert.percent === null ? "nothing is included" : `${alert.percent} % used`;
  const head = element("p", "alert-head");
  head.append(element("b", "", alert.title), element("span", "level", alert.level), element("span", "quiet", share));
  const list = element("ul", "places");
  for (const [place, name] of PLACES) {
    const came = alert.arrived[place] ?? [];
    const line = element("li", came.length === 1 ? "came" : came.length ? "twice" : "");
    line.append(element("b", "", name), element("span", "count", came.length ? `${came.length}×` : "on its way"));
    line.append(element("small", "", came.length ? PROOFS[place](came[0]) : ""));
    list.append(line);
  }
  item.append(head, list);
  return item;
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

async function invent() {
  $("invent").disabled = true;
  $("invented").textContent = "Filling in …";
  try {
    const { recorded } = await (await call("demo", { method: "POST" })).json();
    $("invented").textContent = recorded
      ? `${count(recorded)} operations recorded, up to yesterday. Look at the dashboard.`
      : "This month was filled in already.";
  } catch (error) {
    $("invented").textContent = error.message;
  }
  $("invent").disabled = false;
  await refresh();
}

// -- A site -------------------------------------------------------------------------------------

async function activate(event) {
  event.preventDefault();
  const site = Object.fromEntries(new FormData($("site")));
  const answer = (text, failed) => {
    $("site-answer").textContent = text;
    $("site-answer").classList.toggle("problem", failed);
    $("domain").setAttribute("aria-invalid", String(failed));
  };
  try {
    const headers = { "Content-Type": "application/json" };
    await call("sites", { method: "POST", headers, body: JSON.stringify(site) });
    answer(`${site.domain} is active.`, false);
    $("domain").value = "";
  } catch (error) {
    answer(error.message, true);
    $("domain").focus();
  }
  await refresh();
}

// -- Wiring -------------------------------------------------------------------------------------

$("file").addEventListener("change", (event) => choose(event.target.files[0]));
for (const name of ["dragenter", "dragover"]) {
  $("drop").addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) {
  $("drop").addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.remove("over"); });
}
$("drop").addEventListener("drop", (event) => choose(event.dataTransfer.files[0]));

$("sign").addEventListener("click", () => step(sign));
$("verify").addEventListener("click", () => step(() => verify(state.image)));
$("verify-signed").addEventListener("click", () => step(() => verify(state.signed)));
$("verify-altered").addEventListener("click", () => step(async () => verify(await altered())));
$("site").addEventListener("submit", activate);
$("invent")?.addEventListener("click", invent);

for (const radio of document.querySelectorAll("[name=key]")) {
  radio.addEventListener("change", () => {
    for (const span of document.querySelectorAll(".key")) span.textContent = key();
    $("result").hidden = true;
    refresh();
  });
}
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // no clipboard without https: one key press is left
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

busy(false);
refresh();
setInterval(() => { if (!document.hidden) refresh(); }, POLL_MS);
