"use strict";
const $ = id => document.getElementById(id);
const LIMIT = Number(document.body.dataset.limit), NAMES = ["Frontal", "Lateral"];
let files = [], pressed = null, stop = null, links = [];

function make(tag, props = {}, ...children) {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
}

function fail(sentence) {
  $("error").textContent = sentence;
  $("error").hidden = !sentence;
  if (sentence) $("error").scrollIntoView({ block: "nearest" });
}

// --- choosing

function add(list) {
  const fresh = [...list], large = fresh.find(f => f.size > LIMIT);
  if (!fresh.length) return;
  fail("");
  if (large) return fail(`${large.name} is ${(large.size / 2 ** 20).toFixed(1)} MB, and ${LIMIT / 2 ** 20} MB is the most that a file may have.`);
  if (fresh.length > 2) return fail("Two X-rays are the most: a frontal and a lateral view of the same patient.");
  files = fresh.length === 2 || files.length === 2 ? fresh : [...files, ...fresh];
  const side = files.map(f => /lat/i.test(f.name));
  if (side[0] && side[1] === false) files.reverse();
  showChosen();
}

function showChosen() {
  links.forEach(URL.revokeObjectURL);
  links = [];
  $("chosen").replaceChildren(...files.map((file, i) => {
    const link = URL.createObjectURL(file), thumb = make("div", { className: "thumb" });
    links.push(link);
    const picture = make("img", { src: link, alt: "", onerror() { thumb.replaceChildren("no preview"); } });
    thumb.append(picture);
    const away = make("button", { type: "button", textContent: "Remove", onclick() { files.splice(i, 1); showChosen(); $("files").focus(); } });
    away.setAttribute("aria-label", `Remove ${file.name}`);
    return make("li", {}, thumb, make("strong", { textContent: NAMES[i] }), make("span", { textContent: file.name, title: file.name }), away);
  }));
  $("chosen").hidden = $("go").hidden = !files.length;
  $("empty").hidden = files.length > 0;
  $("swap").hidden = files.length < 2;
}

$("files").addEventListener("change", () => { add($("files").files); $("files").value = ""; });
$("swap").addEventListener("click", () => { files.reverse(); showChosen(); });
$("go").addEventListener("click", () => describe(files));
for (const type of ["dragenter", "dragover", "dragleave", "drop"])
  addEventListener(type, event => {
    event.preventDefault();
    $("drop").classList.toggle("over", type === "dragenter" || type === "dragover");
    if (type === "drop") add(event.dataTransfer.files);
  });

$("gallery").addEventListener("click", async event => {
  const button = event.target.closest("button");
  if (!button) return;
  const uid = button.dataset.uid;
  await describe(async signal => {
    const get = path => fetch(`api/examples/${uid}${path}`, { signal });
    const [about, ...views] = await Promise.all([get(""), get("/frontal.png"), get("/lateral.png")]);
    return [await Promise.all(views.map(async (view, i) => new File([await view.blob()], `${uid}-${NAMES[i].toLowerCase()}.png`))), await about.json()];
  }, button);
});

// --- asking

async function describe(source, button) {
  stop?.abort();
  const mine = stop = new AbortController(), began = Date.now();
  const tick = () => { $("doing").textContent = `Reading the X-rays, ${Math.round((Date.now() - began) / 1000)} s`; };
  const clock = setInterval(tick, 1000);
  tick();
  fail("");
  for (const b of $("gallery").querySelectorAll("button")) b.setAttribute("aria-pressed", b === button);
  $("result").hidden = true;
  $("working").hidden = false;
  $("said").textContent = "Reading the X-rays.";
  $("working").scrollIntoView({ block: "nearest" });
  try {
    const [chosen, example] = typeof source === "function" ? await source(mine.signal) : [source, null];
    const form = new FormData();
    chosen.forEach((file, i) => form.append(NAMES[i].toLowerCase(), file));
    if (!example && $("indication")?.value.trim()) form.append("indication", $("indication").value);
    const answer = await fetch("api/report", { method: "POST", body: form, signal: mine.signal });
    const report = await answer.json().catch(() => ({ error: `The server answered ${answer.status} ${answer.statusText}.` }));
    if (answer.ok) show(report, chosen, example);
    else fail(report.error);
  } catch (error) {
    if (error.name !== "AbortError") fail("The server does not answer: is xraycap serve still running?");
  } finally {
    clearInterval(clock);
    if (stop === mine) {
      $("working").hidden = true;
      if ($("result").hidden) $("said").textContent = "";
    }
  }
}

$("stop").addEventListener("click", () => { stop?.abort(); $("working").hidden = true; });

// --- showing

const INFERNO = [[0, 0, 4], [33, 12, 74], [87, 16, 110], [138, 34, 106], [188, 55, 84], [228, 90, 49], [249, 142, 9], [249, 203, 53], [252, 255, 164]];

function colour(x) {
  const i = Math.min(Math.floor(x * 8), 7), t = x * 8 - i;
  return INFERNO[i].map((c, j) => c + (INFERNO[i + 1][j] - c) * t);
}

function paint(canvas, weights, top) {
  const small = make("canvas", { width: 7, height: 7 }), pixels = new ImageData(7, 7);
  weights.flat().forEach((w, i) => pixels.data.set([...colour(Math.min(w / top, 1)), 255 * .75 * Math.min(w / top, 1)], 4 * i));
  small.getContext("2d").putImageData(pixels, 0, 0);
  canvas.width = canvas.height = 224;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, 224, 224);
}

function where(maps, names) { // in words, for those who do not see the colours
  const shares = maps.map(map => map.flat().reduce((a, b) => a + b, 0)), view = shares.indexOf(Math.max(...shares));
  const weights = maps[view].flat(), at = weights.indexOf(Math.max(...weights));
  const row = ["upper", "middle", "lower"][Math.floor(Math.floor(at / 7) / 7 * 3)], column = ["left", "centre", "right"][Math.floor(at % 7 / 7 * 3)];
  const parts = names.map((name, i) => `${Math.round(100 * shares[i])} % ${name.toLowerCase()}`);
  return `${names.length > 1 ? parts.join(", ") + "; s" : "S"}trongest in the ${row} ${column} of the ${names[view].toLowerCase()} picture.`;
}

function show(report, chosen, example) {
  const names = NAMES.slice(0, report.views.length);
  const figures = report.views.map((src, i) => make("figure", {},
    make("div", { className: "view" }, make("img", { src, alt: `${names[i]} view` }), make("canvas")),
    make("figcaption", { textContent: names[i] + (example ? ", simulated" : "") })));
  const canvases = figures.map(figure => figure.querySelector("canvas"));
  $("views").replaceChildren(...figures);

  pressed = null;
  const buttons = [];
  const light = i => {
    buttons.forEach((button, j) => { button.classList.toggle("on", j === i); button.setAttribute("aria-pressed", j === pressed); });
    canvases.forEach(canvas => canvas.classList.toggle("on", i !== null));
    $("looked").textContent = "";
    if (i === null) return;
    const maps = report.attention[i], top = Math.max(...maps.flat(2), 4 / 98); // chapter 14: one scale for both views, and no loud noise
    canvases.forEach((canvas, v) => paint(canvas, maps[v], top));
    $("looked").textContent = where(maps, names);
  };
  $("warnings").replaceChildren(...report.warnings.map(sentence => make("li", { textContent: sentence })));
  $("warnings").hidden = !report.warnings.length;
  $("hint").hidden = !report.attention;
  const surely = i => {
    const sure = report.confidence?.[i] ?? null;
    return make("span", { className: "quiet", textContent: sure === null ? "" : `${Math.round(100 * sure)} % sure` });
  };
  $("sentences").replaceChildren(...report.sentences.map((sentence, i) => {
    if (!report.attention) return make("li", {}, make("p", { textContent: sentence }), surely(i));
    const button = make("button", { type: "button", textContent: sentence });
    const back = () => light(pressed);
    button.addEventListener("mouseenter", () => light(i));
    button.addEventListener("mouseleave", back);
    button.addEventListener("focus", () => light(i));
    button.addEventListener("blur", back);
    button.addEventListener("click", () => { pressed = pressed === i ? null : i; light(pressed); });
    button.addEventListener("keydown", event => { if (event.key === "Escape") { pressed = null; light(null); } });
    buttons.push(button);
    return make("li", {}, button, surely(i));
  }));
  if (!report.sentences.length) $("sentences").replaceChildren(make("li", {}, make("p", { textContent: "The model found no words." })));
  light(null);
  $("concluded").hidden = report.impression === null;
  $("impression").textContent = report.impression || "(none)";

  $("result-notice").textContent = report.notice;
  $("about").textContent = `Model “${report.model}”, ${report.seconds.toFixed(1)} s.`;
  $("radiologist").hidden = !example;
  if (example) {
    $("radiologist").querySelector("blockquote").textContent = example.findings;
    $("radiologist").querySelector("span").textContent = example.mesh.join("; ");
  }
  const { views, ...rest } = report, images = example ? ["Images: simulated"] : [];
  const text = [report.notice, ...report.warnings, "", ...report.sentences, "", ...(report.impression === null ? [] : [`Impression: ${report.impression}`, ""]), `Model: ${report.model}`, `Files: ${chosen.map(f => f.name).join(", ")}`, ...images, ""].join("\n");
  save("as-text", text, "text/plain");
  save("as-json", JSON.stringify({ ...rest, files: chosen.map(f => f.name) }, null, 1) + "\n", "application/json");

  $("result").hidden = false;
  $("said").textContent = ["The findings are there.", ...report.warnings].join(" ");
  $("result").scrollIntoView({ block: "start" });
  $("result-title").focus({ preventScroll: true });
}

function save(id, text, type) {
  URL.revokeObjectURL($(id).href);
  $(id).href = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
}
