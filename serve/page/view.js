// What is shown of photos, verdicts and the model. Reads items, changes the page, decides nothing.

const VERDICTS = { match: "✓ Match", mismatch: "✕ Mismatch", review: "? Review" };
const STATES = { waiting: "Waiting", asking: "Counting …", failed: "! Failed", done: "Counted" };
const FLAGS = {
  dark: "The photo is dark: items may hide in the shadow. More light helps.",
  blurred: "The photo is blurred: edges of items cannot be told apart. Hold the camera still.",
  too_small: "The photo is small: items cover few pixels. Take it at a higher resolution.",
};

export const byId = (id) => document.getElementById(id);

/** An element with properties and children; text is never read as markup. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** To a tenth, but never rounded to certainty. */
export function percent(p) {
  if (p > 0 && p < 0.001) return "< 0.1 %";
  if (p < 1 && p > 0.999) return "> 99.9 %";
  return `${(100 * p).toFixed(1)} %`;
}

export const items = (count) => (count === 1 ? "item" : "items");
const rangeOf = (range) => (range.low === range.high ? `${range.low}` : `${range.low} to ${range.high}`);

/** One sentence on a photo, for those who hear the page. */
export function sentenceOf(item) {
  if (item.state === "failed") return `${item.file.name}: ${item.failure}`;
  const { count, range } = item.counted;
  const within = range ? `, 90 % range ${rangeOf(range)}` : "";
  return `${item.file.name}: ${count} ${items(count)}${within}.`;
}

// --- One photo ------------------------------------------------------------------------------------------------------

/** Everything of one photo. */
export function showDetail(item) {
  const photo = byId("photo");
  if (photo.src !== item.url) {
    const show = (isPhoto) => ([photo.hidden, byId("no-photo").hidden] = [!isPhoto, isPhoto]);
    photo.onerror = () => show(false);
    show(true);
    photo.src = item.url;
  }
  photo.alt = `Photo ${item.file.name}`;
  byId("name").textContent = item.file.name;
  const waiting = { waiting: "Waiting for its turn …", asking: item.note || "Counting …" };
  byId("waiting").textContent = waiting[item.state] ?? "";
  byId("failure").hidden = item.state !== "failed";
  byId("failure-text").textContent = item.failure;
  byId("answer").hidden = byId("made-by").hidden = !item.counted;
  if (document.activeElement !== byId("expected")) byId("expected").value = item.expected ?? "";
  byId("verdict").replaceChildren(...(item.verdict ? verdictParts(item.verdict) : []));
  byId("flags").replaceChildren(...flagsOf(item).map((words) => make("li", {}, words)));
  byId("size").textContent = item.counted ? `${item.counted.photo.width} × ${item.counted.photo.height} px` : "";
  if (item.counted) showCount(item.counted, item.ms);
}

function showCount(counted, ms) {
  const { count, probabilities, range, expected_value: mean, model, timing } = counted;
  byId("count").textContent = count;
  byId("unit").textContent = items(count);
  const figures = {
    "90 % range": range ? rangeOf(range) : "unknown: the model is not calibrated",
    "Expected value": mean.toFixed(2),
  };
  byId("figures").replaceChildren(...pairs(figures));
  byId("bars").replaceChildren(...Object.entries(probabilities).map(([of, p]) => barOf(Number(of), p, counted)));
  byId("bars-note").hidden = !range;
  byId("made-by").textContent =
    `Model ${model.version} (${model.name}, ${model.runtime}). Answered in ${ms.toFixed(0)} ms: ` +
    `decoding ${timing.decode_ms.toFixed(1)} ms, counting ${timing.count_ms.toFixed(1)} ms, the rest is transfer.`;
}

function barOf(of, p, { count, range }) {
  const bar = make("span", { className: "bar", ariaHidden: "true" }, make("span"));
  bar.firstChild.style.width = `${100 * p}%`;
  const inRange = range && range.low <= of && of <= range.high;
  const label = make("span", { className: "of" }, `${of}`, make("span", { className: "unseen" }, ` ${items(of)}: `));
  const mark = of === count ? make("span", { className: "unseen" }, ", the most probable") : "";
  const classes = [of === count ? "top" : "", inRange ? "in-range" : ""].join(" ");
  return make("li", { className: classes }, label, bar, make("span", { className: "p" }, percent(p), mark));
}

function verdictParts({ verdict, p_match: p, explanation }) {
  const chance = p === null ? "p(match) unknown" : `p(match) ${percent(p)}`;
  return [make("p", {}, badge(verdict, VERDICTS[verdict]), ` ${chance}`), make("p", {}, explanation)];
}

const badge = (kind, words) => make("span", { className: `badge ${kind}` }, words);
const flagsOf = (item) => (item.counted?.photo.flags ?? []).map((flag) => FLAGS[flag] ?? flag);

function pairs(figures) {
  return Object.entries(figures).map(([term, value]) =>
    make("div", {}, make("dt", {}, term), make("dd", {}, `${value}`)));
}

// --- Several photos -------------------------------------------------------------------------------------------------

const CELLS = ["photo", "expected", "count", "range", "p", "verdict"];
const LABELS = { expected: "Expected", count: "Count", range: "90 % range", p: "p(match)" };

/** A row of the table, made once per photo, so that whoever types in it keeps the place. */
export function makeRow(item, { onOpen, onExpect, onRetry }) {
  const name = make("button", { type: "button", className: "link", onclick: onOpen }, item.file.name);
  const picture = make("img", { src: item.url, alt: "", loading: "lazy", decoding: "async", width: 56, height: 56 });
  picture.onerror = () => picture.classList.add("broken");
  const expected = make("input", {
    type: "number", inputMode: "numeric", min: "0", max: "100000", step: "1", placeholder: "none",
    ariaLabel: `Expected quantity of ${item.file.name}`, onchange: () => onExpect(expected),
  });
  const again = `Try again: ${item.file.name}`;
  const retry = make("button", { type: "button", onclick: onRetry, ariaLabel: again }, "Try again");
  const cells = CELLS.map((of) => make("td", { className: of, role: "cell" }));
  cells[0].append(picture, name);
  cells[1].append(expected);
  for (const [at, of] of CELLS.entries()) if (LABELS[of]) cells[at].dataset.label = LABELS[of];
  const cellOf = Object.fromEntries(CELLS.map((of, at) => [of, cells[at]]));
  return Object.assign(make("tr", { role: "row" }, ...cells), { cellOf, expected, retry });
}

/** Brings a row up to date. */
export function fillRow(item) {
  const { cellOf, expected, retry } = item.row;
  if (document.activeElement !== expected) expected.value = item.expected ?? "";
  cellOf.count.textContent = item.counted?.count ?? "–";
  cellOf.range.textContent = item.counted?.range ? rangeOf(item.counted.range) : "–";
  cellOf.p.textContent = item.verdict && item.verdict.p_match !== null ? percent(item.verdict.p_match) : "–";
  const verdict = item.state === "done" && item.verdict?.verdict;
  const words = verdict ? VERDICTS[verdict] : STATES[item.state];
  const told = [badge(verdict || item.state, words)];
  if (item.state === "failed") told.push(make("p", { className: "small" }, item.failure), retry);
  if (item.state === "asking" && item.note) told.push(make("p", { className: "small soft" }, item.note));
  const flags = item.state === "done" ? flagsOf(item) : [];
  told.push(...flags.map((words) => make("p", { className: "small soft" }, words.split(":")[0])));
  cellOf.verdict.replaceChildren(...told);
}

/** Progress and how many photos came to which verdict. Gives the sentence that says so. */
export function showTally(all) {
  const numOf = (test) => all.filter(test).length;
  const done = numOf((one) => one.state === "done" || one.state === "failed");
  const progress = byId("progress");
  progress.max = all.length;
  progress.value = done;
  byId("progress-text").textContent = `${done} of ${all.length} photos`;
  byId("progress-line").hidden = done === all.length;
  const words = { ...VERDICTS, done: "Counted, no record", failed: STATES.failed };
  const kindOf = (one) => (one.state === "done" ? (one.verdict?.verdict ?? "done") : one.state);
  const present = Object.entries(words)
    .map(([kind, name]) => [kind, name, numOf((one) => kindOf(one) === kind)])
    .filter(([, , number]) => number);
  byId("tally").replaceChildren(...present.map(([kind, name, number]) => badge(kind, `${name}: ${number}`)));
  const hasRecords = all.some((one) => one.expected !== null);
  byId("order").textContent = hasRecords
    ? "Worst first: on top is the record that is least likely to be right."
    : "Give the expected quantities, here or by a record table, and the photos are ranked by how likely each is right.";
  const spoken = present.map(([, name, number]) => `${name.replace(/^\W+/, "")}: ${number}`).join(", ");
  return `${done} of ${all.length} photos are done. ${spoken}.`;
}

// --- The model ------------------------------------------------------------------------------------------------------

/** The card of the model, in words. */
export function showModel(card) {
  const { metrics, calibration } = card;
  const facts = {
    Version: card.version,
    Model: `${card.backbone}, recipe ${card.recipe}, photos of ${card.image_size} px; computed by ${card.runtime}`,
    Counts: `0 to ${card.max_count}; it knows no other answer, also where there are more`,
    Accuracy: accuracyOf(metrics),
    Calibrated: calibration ? sourceOf(calibration) : "no: there are no ranges, and every verdict is a review",
  };
  if (calibration?.verify) facts.Verdicts = verdictsOf(calibration.verify);
  byId("model-facts").replaceChildren(...pairs(facts));
}

function accuracyOf({ val_accuracy: right, val_within_one: near, val_num_images: number }) {
  if (typeof right !== "number") return "not stored with the model";
  const besides = typeof near === "number" ? `, within one item on ${percent(near)}` : "";
  return `exactly right on ${percent(right)} of ${number ?? "the"} validation photos${besides}`;
}

function sourceOf({ num_images: number, source, split, split_by: by, temperature }) {
  return `on ${number} photos of ${source} (split ${split}, made by ${by}), temperature ${temperature.toFixed(2)}`;
}

function verdictsOf({ match, mismatch, false_alarms: alarms, misses }) {
  return `match above a p(match) of ${percent(match)} and within the range, mismatch below ${percent(mismatch)}, else review. ` +
    `On photos like those of the calibration, at most ${percent(alarms)} of right records are called mismatches, ` +
    `and at most ${percent(misses)} of records off by one or two are called matches`;
}
