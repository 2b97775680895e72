// The status page: asks for one document every two seconds and shows it. No library, no build.
// All that comes from the daemon is put in as text, never as markup.
"use strict";

const EVERY_MS = 2000;
const at = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const WHERE = { device: "device", cloud: "cloud", third_party: "third party", refused: "refused" };
const words = (code) => String(code ?? "").replaceAll("_", " ");

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function bytes(count) {
  if (count === null || count === undefined) return "unknown";
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = count < 1000 ? 0 : Math.min(4, Math.floor(Math.log10(count) / 3));
  const shown = count / 1000 ** power;
  return `${power ? shown.toFixed(shown < 10 ? 2 : 1) : shown} ${units[power]}`;
}

function span(seconds) {
  const whole = Math.round(seconds);
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (whole < 60) return `${seconds < 10 ? seconds.toFixed(1) : whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 172800) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} days`;
}

const moment = (unix) => new Date(unix * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const clock = (unix) => new Date(unix * 1000).toLocaleTimeString("en-GB");

function where(route, error) {
  if (error) return element("span", words(error), { class: "failed" });
  return element("span", WHERE[route] ?? "…", { class: route ?? "" });
}

// columns: [title, value of a row (text or element), is it a number?]
function table(into, caption, columns, rows, none) {
  const shown = JSON.stringify([caption, rows]);
  if (into.dataset.shown === shown) return;
  into.dataset.shown = shown;
  if (!rows.length) {
    into.replaceChildren(element("p", none, { class: "none" }));
    return;
  }
  const made = element("table", undefined, { role: "table", "aria-label": caption });
  const head = element("thead", undefined, { role: "rowgroup" });
  const titles = element("tr", undefined, { role: "row" });
  for (const [title, , isNumber] of columns) {
    const cell = element("th", title, { scope: "col", role: "columnheader" });
    if (isNumber) cell.className = "number";
    titles.append(cell);
  }
  head.append(titles);
  const body = element("tbody", undefined, { role: "rowgroup" });
  for (const row of rows) {
    const line = element("tr", undefined, { role: "row" });
    for (const [title, value, isNumber] of columns) {
      const cell = element("td", undefined, { role: "cell", "data-label": title });
      if (isNumber) cell.className = "number";
      cell.append(value(row));
      line.append(cell);
    }
    body.append(line);
  }
  made.append(head, body);
  into.replaceChildren(made);
}

function facts(into, pairs) {
  const kept = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  const shown = JSON.stringify(kept);
  if (into.dataset.shown === shown) return;
  into.dataset.shown = shown;
  into.replaceChildren(...kept.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

function showSums(seen) {
  const tokens = seen.totals.tokens_by_route;
  at("kept").textContent = number.format(tokens.device ?? 0);
  at("spilled").textContent = number.format((tokens.cloud ?? 0) + (tokens.third_party ?? 0));
  at("left").textContent = bytes(seen.totals.bytes_sent);
  at("cost").textContent = seen.cost_30_days.toFixed(seen.cost_30_days < 1 ? 4 : 2);
  const failed = seen.totals.failures ? `, ${number.format(seen.totals.failures)} failed` : "";
  at("answers").textContent = number.format(seen.totals.answers) + failed;
}

function showNow(seen) {
  table(at("running"), "Running now", [
    ["App", (r) => r.app],
    ["Where", (r) => where(r.route)],
    ["Why", (r) => words(r.reason)],
    ["Model", (r) => r.model ?? "…"],
    ["Pieces", (r) => number.format(r.pieces), true],
    ["For", (r) => span(r.seconds), true],
  ], seen.running, "Nothing runs.");
  table(at("queue"), "Waiting for a turn", [
    ["App", (q) => q.app],
    ["Go first", (q) => number.format(q.position), true],
    ["Lane", (q) => q.lane],
    ["Waits", (q) => span(q.waited_s), true],
  ], seen.queue, "Nobody waits.");
}

function showModel(seen) {
  const model = seen.model, memory = seen.memory;
  const stays = model?.keep_alive_s === null ? "until the daemon ends" : `${span(model?.keep_alive_s ?? 0)} after its last use`;
  const going = typeof model?.unloads_in_s === "number" ? `, goes in ${span(model.unloads_in_s)}` : "";
  facts(at("model"), !model ? [["Model", "none on this device"]] : [
    ["Model", `${model.name} (${model.runtime}, ${number.format(model.context)} tokens of context)`],
    ["State", `${loaded(model)}${model.users ? `, answers ${model.users}` : ""}${going}`],
    ["Stays", model.state ? stays : null],
    ["Weights", model.weights_bytes ? bytes(model.weights_bytes) : "no file"],
    ["With its cache full", model.full_bytes ? bytes(model.full_bytes) : "unknown"],
    ["The daemon takes now", bytes(memory.daemon_bytes)],
    ["Free on this machine", bytes(memory.free_bytes)],
    ["Notes", (model.notes ?? []).join(" ")],
  ]);
  showBar(model, memory);
  const focused = document.activeElement;
  at("unload").disabled = model?.state !== "loaded" || model.users > 0;
  at("prewarm").disabled = model?.state !== "unloaded";
  // Who presses one by keyboard stays where the next press makes sense.
  if (focused === at("unload") && focused.disabled) at("prewarm").focus();
  if (focused === at("prewarm") && focused.disabled) at("unload").focus();
}

function loaded(model) {
  const share = Math.round(100 * (model.loaded_share ?? 0));
  return model.state === "loading" ? `loading, ${share}%` : model.state ?? "held by its app";
}

function showBar(model, memory) {
  const full = model?.full_bytes ?? 0, bar = at("memory-bar");
  const drawn = full > 0 && memory.free_bytes !== null;
  bar.hidden = at("memory-legend").hidden = !drawn;
  if (!drawn) return;
  const room = memory.free_bytes + memory.daemon_bytes, weights = Math.min(model.weights_bytes, full);
  const legend = `Of ${bytes(room)} that the daemon could have: weights ${bytes(weights)} (filled), `
    + `up to ${bytes(full - weights)} more as the KV cache grows (hatched).`;
  const parts = [["weights", weights], ["growth", full - weights]].map(([name, size]) => {
    const part = element("span", undefined, { class: name });
    part.style.width = `${Math.min(100, (100 * size) / room)}%`;
    return part;
  });
  bar.replaceChildren(...parts);
  bar.setAttribute("aria-label", legend);
  at("memory-legend").textContent = legend;
}

function showPast(seen) {
  table(at("last"), "Last routes", [
    ["When", (e) => clock(e.unix_s)],
    ["App", (e) => e.app],
    ["Where", (e) => where(e.route, e.error)],
    ["Why", (e) => [words(e.reason), ...e.changes].filter(Boolean).join("; ") || "–"],
    ["Model", (e) => e.model ?? "–"],
    ["Tokens", (e) => number.format(e.prompt_tokens + e.completion_tokens), true],
    ["Took", (e) => span(e.seconds), true],
    ["Left", (e) => bytes(e.bytes_sent), true],
  ], seen.last, "No answer yet.");
  table(at("consents"), "Requests that needed a person's consent", [
    ["When", (e) => clock(e.unix_s)],
    ["App", (e) => e.app],
    ["What would leave", (e) => e.would_leave ?? "–"],
    ["What happened", () => "refused: its app has to ask a person, and send the grant"],
  ], seen.consents, "No request waits for a person. Apps ask for consent themselves, for each request; the daemon sends nothing to third parties.");
  table(at("spending"), "What it took in 30 days", [
    ["Where", (s) => where(s.route)],
    ["Model", (s) => s.model],
    ["Tries", (s) => number.format(s.tries), true],
    ["Tokens", (s) => number.format(s.prompt_tokens + s.completion_tokens), true],
    ["Cost", (s) => s.cost.toFixed(4), true],
  ], seen.spending, "Nothing yet.");
}

function showCloud(seen) {
  const cloud = seen.cloud, proof = cloud?.proof;
  const problem = cloud?.problem ? [["Problem", cloud.problem]] : [];
  if (!cloud) facts(at("cloud"), [["Cloud", "none is set"]]);
  else if (!proof) facts(at("cloud"), [["Cloud", cloud.address], ["Proven", "nothing yet: it was not asked"], ...problem]);
  else facts(at("cloud"), [
    ["Cloud", cloud.address],
    ["Assurance", words(proof.assurance) + (proof.dev ? " (DEVELOPMENT evidence: proves nothing)" : "")],
    ["Evidence", proof.evidence_type],
    ["Checked", moment(proof.checked_unix)],
    ["Holds until", moment(proof.accepted_until)],
    ["Release", proof.release_id],
    ["Key configuration", proof.nkc_sha256],
    ...problem,
  ]);
  const steps = proof?.steps ?? [];
  at("proof").hidden = !steps.length;
  if (at("steps").dataset.shown === JSON.stringify(steps)) return;
  at("steps").dataset.shown = JSON.stringify(steps);
  at("steps").replaceChildren(...steps.map((step) => {
    const mark = step.ok === null ? "not asked for" : step.ok ? "passed" : "FAILED";
    return element("li", `${step.name}: ${mark}${step.detail ? ` (${step.detail})` : ""}`);
  }));
}

function showRules(seen) {
  const rules = seen.policy, above = rules.administrator;
  const list = (names) => (names === null || names === undefined ? null : names.join(", ") || "none");
  facts(at("rules"), [
    ["Floor", rules.floor],
    ["Routing policy", `${rules.version || "built in"}${rules.expired ? " (EXPIRED)" : ""}`],
    ["Administrator", above ? above.path : "no rules on this machine"],
    ["Allowed clouds", list(above?.clouds)],
    ["Allowed models", list(above?.models)],
    ["Third parties", above?.third_parties === false ? "off" : null],
  ]);
}

function show(seen) {
  const home = `version ${seen.version}, up ${span(seen.uptime_s)}, process ${seen.pid}`;
  if (at("about").textContent !== home) at("about").textContent = home;
  for (const part of [showSums, showNow, showModel, showPast, showCloud, showRules]) part(seen);
  at("main").hidden = false;
}

// The line is read out when it changes, and only then.
function say(text, isBad = false) {
  const line = at("state");
  if (line.textContent !== text) line.textContent = text;
  line.className = isBad ? "bad" : "";
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  if (answer.status === 401) throw new Error("This page is signed out. Run: overspill ui");
  const document = answer.status === 204 ? {} : await answer.json();
  if (!answer.ok) throw new Error(document.error ?? "It did not work.");
  return document;
}

async function refresh() {
  if (document.hidden) return;
  try {
    show(await ask("/overview"));
    say("Live");
  } catch (error) {
    say(error instanceof TypeError ? "overspill ui has ended. Run it again." : error.message, true);
  }
}

async function act(path) {
  try {
    await ask(path, { method: "POST" });
    await refresh();
  } catch (error) {
    say(error.message, true);
  }
}

async function signIn() {
  const code = location.hash.slice(1);
  if (!/^[\w-]{43}$/.test(code)) return; // "#main" is the skip link's
  history.replaceState(null, "", "/");
  const headers = { "Content-Type": "application/json" };
  await ask("/session", { method: "POST", headers, body: JSON.stringify({ code }) });
}

async function start() {
  at("unload").addEventListener("click", () => act("/unload"));
  at("prewarm").addEventListener("click", () => act("/prewarm"));
  document.addEventListener("visibilitychange", refresh);
  try {
    await signIn();
  } catch (error) {
    say(error.message, true);
    return;
  }
  await refresh();
  setInterval(refresh, EVERY_MS);
}

start();
