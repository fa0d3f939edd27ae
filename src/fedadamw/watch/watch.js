// Asks for the folder's snapshot every few seconds and shows it. Text is only ever set as text.
const PAUSE_MS = 2000;
const DEVICES = ["timeline", "staleness", "idle", "work", "jobs"];
const CHARTS = ["score", "losses", "epsilon", "answers", ...DEVICES, "spread", "sorted", "by-samples", "by-classes", "by-tuning", "clients", "last"];
const at = (id) => document.getElementById(id);
const run = location.pathname.startsWith("/run/") ? location.pathname.slice(1) : "";
const dark = matchMedia("(prefers-color-scheme: dark)");
const drawn = {}; // chart's name -> { shape, rows, view }
let last = "", chosen = ""; // what the score is drawn along

function element(tag, text = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function darken(spec) {
  const text = "#cbd5e1", lines = "#475569";
  const axis = { ...spec.config.axis, gridColor: "#334155", domainColor: lines, tickColor: lines, labelColor: text, titleColor: text };
  const legend = { labelColor: text, titleColor: text };
  spec.config = { ...spec.config, background: "transparent", axis, legend, title: { ...spec.config.title, color: "#e2e8f0", subtitleColor: "#94a3b8" } };
}

async function draw(name, spec) {
  at(name).hidden = !spec;
  if (!spec) return;
  const rows = spec.data?.values; // none of a chart whose layers have data of their own
  if (rows) spec.data = { name: "rows" };
  if (dark.matches) darken(spec);
  const shape = JSON.stringify(spec), known = drawn[name];
  if (known && known.shape === shape) {
    if (!rows) return;
    const text = JSON.stringify(rows);
    if (text !== known.rows) await known.view.data("rows", rows).runAsync();
    known.rows = text;
    return;
  }
  if (known) known.view.finalize();
  if (rows) spec.data = { name: "rows", values: rows };
  const { view } = await vegaEmbed(at(name).lastElementChild, spec, { actions: false, renderer: "svg" });
  drawn[name] = { shape, rows: JSON.stringify(rows), view };
}

function fill(table, heads, rows) {
  const line = (tag, cells) => {
    const row = element("tr");
    row.append(...cells.map((cell) => (cell instanceof Node ? cell : element(tag, cell))));
    return row;
  };
  table.replaceChildren(line("th", heads), ...rows.map((row) => line("td", row)));
}

const number = (value) => (value === null ? "not accepted" : value.toPrecision(4));

function showLogs(logs) {
  for (const [title, lines] of Object.entries(logs)) {
    let box = at("log-" + title);
    if (!box) {
      box = element("div", "", "panel scroll");
      box.id = "log-" + title;
      box.append(element("pre"));
      at("logs").append(element("h2", title), box);
    }
    const atEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 8;
    box.firstChild.textContent = lines.join("\n");
    if (atEnd) box.scrollTop = box.scrollHeight;
  }
}

function showWorst({ line = "", headings = [], rows = [] }) {
  at("of-scores").hidden = !rows.length;
  at("worst-line").textContent = line;
  const kind = (i) => (i === 0 || headings[i] === "classes" ? "text" : "");
  const cells = (tag, row) => row.map((cell, i) => element(tag, cell, kind(i)));
  fill(at("worst"), cells("th", headings), rows.map((row) => cells("td", row)));
}

function chooseAlong(along) {
  const names = Object.keys(along);
  if (!names.includes(chosen)) chosen = names[0] ?? "";
  at("along").hidden = !names.length;
  at("along").replaceChildren("by", ...names.map((name) => {
    const button = element("button", name);
    button.setAttribute("aria-pressed", name === chosen);
    button.onclick = () => { chosen = name; show(JSON.parse(last)); };
    return button;
  }));
  return along[chosen];
}

async function showRun(shown) {
  at("cards").replaceChildren(...(shown.cards ?? []).map(([label, value]) => {
    const card = element("div", "", "card");
    card.append(element("b", value), element("span", label));
    return card;
  }));
  at("of-clients").hidden = !shown.clients?.length;
  const heads = ["client", "rounds sampled", "last of them", "last loss", "mean loss"];
  const columns = shown.losses === false ? 3 : 5;  // with differential privacy no training loss is recorded
  fill(at("table"), heads.slice(0, columns), (shown.clients ?? []).map(([client, times, round, loss, mean]) =>
    [client, times, round, number(loss), number(mean)].slice(0, columns)));
  showWorst(shown.worst ?? {});
  showLogs(shown.logs ?? {});
  const charts = shown.charts ?? {}, along = chooseAlong(shown.along ?? {});
  if (along) charts.score = along;
  at("of-devices").hidden = !DEVICES.some((name) => charts[name]);
  const visible = () => CHARTS.filter((name) => !at(name).hidden).join();
  const before = visible();
  for (const name of CHARTS) await draw(name, charts[name]);
  if (visible() !== before) dispatchEvent(new Event("resize")); // the others have less room now
}

function showStudy(shown) {
  const heads = [element("th", "run", "text"), element("th", "state", "text"), "rounds", element("th", "score", "text")];
  fill(at("runs"), shown.runs.length ? heads : [], shown.runs.map((row) => {
    const link = element("a", row.name);
    link.href = "/run/" + row.path.split("/").map(encodeURIComponent).join("/");
    const name = element("td", "", "text");
    name.append(link);
    const state = element("td", row.state, "text");
    state.title = row.line;
    return [name, state, `${row.round} / ${row.rounds}`, element("td", row.score, "text")];
  }));
}

function showLinks(report) {
  const links = [];
  if (run) links.push(["all runs", "/"]);
  if (report) links.push(["report", "/report/" + run]);
  at("links").hidden = !links.length;
  at("links").replaceChildren(...links.flatMap(([text, to], i) => {
    const link = element("a", text);
    link.href = to;
    return i ? [" | ", link] : [link];
  }));
}

async function show(shown) {
  at("title").textContent = shown.title;
  document.title = shown.progress === undefined ? shown.title : `${Math.floor(100 * shown.progress)}% ${shown.title}`;
  at("state").textContent = shown.state;
  at("state").className = shown.state;
  at("line").textContent = shown.line.startsWith(shown.state) ? shown.line.slice(shown.state.length).replace(/^: /, "") : shown.line;
  at("bar").parentNode.hidden = shown.progress === undefined;
  at("bar").style.width = `${100 * (shown.progress ?? 0)}%`;
  showLinks(shown.report);
  at("run").hidden = shown.kind !== "run";
  at("study").hidden = shown.kind !== "study";
  await (shown.kind === "run" ? showRun(shown) : showStudy(shown));
}

async function poll() {
  try {
    const answer = await fetch("/api/" + run);
    const text = await answer.text();
    if (!answer.ok) throw new Error(text.trim());
    if (text !== last) await show(JSON.parse(text));
    last = text;
  } catch (error) {
    last = "";
    at("state").textContent = "no answer";
    at("state").className = "failed";
    at("line").textContent = error instanceof TypeError ? "fedadamw watch was ended, or the connection is lost" : error.message;
  }
  setTimeout(poll, PAUSE_MS);
}

dark.addEventListener("change", () => location.reload());
poll();
