// The page: photos come in, are counted one by one by the server, and stand as one result or as a recount queue.

import { keyOf, queueCsv, readRecords, recountOrder } from "./records.js";
import { Refused, count, model, onUnauthorized } from "./server.js";
import { byId, fillRow, make, makeRow, sentenceOf, showDetail, showModel, showTally } from "./view.js";

const MAX_AT_ONCE = 3; // photos at the server; more would only wait there
const MAX_PROBLEMS_SHOWN = 5;

/**
 * Photos in the order they came. Each is {file, url, expected, state, counted, verdict, failure, note, ms, row, abort};
 * state goes from waiting over asking to done or failed, and back to waiting when the record changes.
 */
let all = [];
let table = null; // {quantities, problems} of the record tables so far
let numAsking = 0;
let shown = null; // the photo whose details are open

// --- Photos and tables come in --------------------------------------------------------------------------------------

async function take(files) {
  const isTable = (file) => /\.(csv|tsv|txt)$/i.test(file.name) || file.type === "text/csv";
  for (const file of files.filter(isTable)) await takeTable(file);
  for (const file of files.filter((one) => !isTable(one))) addPhoto(file);
  if (table) tellOfTable();
  arrange();
  work();
}

function addPhoto(file) {
  const expected = table?.quantities.get(keyOf(file.name)) ?? null;
  const item = { file, url: URL.createObjectURL(file), expected, state: "waiting", abort: new AbortController() };
  Object.assign(item, { counted: null, verdict: null, failure: "", note: "", ms: 0 });
  item.row = makeRow(item, {
    onOpen: () => open(item),
    onExpect: (field) => expect(item, field),
    onRetry: () => {
      retry(item);
      item.row.cellOf.photo.querySelector("button").focus(); // the pressed button goes
    },
  });
  if (file.type && !file.type.startsWith("image/")) {
    Object.assign(item, { state: "failed", failure: "This is no JPEG or PNG photo; it was not sent." });
  }
  all.push(item);
  byId("rows").tBodies[0].append(item.row);
  fillRow(item);
}

async function takeTable(file) {
  const { quantities, problems } = readRecords(await file.text());
  table = { quantities: new Map([...(table?.quantities ?? []), ...quantities]), problems };
  for (const item of all) {
    const expected = quantities.get(keyOf(item.file.name));
    if (expected !== undefined && expected !== item.expected) ask(item, expected);
  }
}

function tellOfTable() {
  const photos = new Set(all.map((item) => keyOf(item.file.name)));
  const found = [...table.quantities.keys()].filter((key) => photos.has(key)).length;
  const problems = table.problems.slice(0, MAX_PROBLEMS_SHOWN);
  const more = table.problems.length - problems.length;
  if (more > 0) problems.push(`And ${more} more rows that cannot be used.`);
  byId("table-note").replaceChildren(
    make("p", {}, `Record table: ${table.quantities.size} records, ${found} of them with a photo here.`),
    ...problems.map((words) => make("p", { className: "note" }, words)),
  );
}

// --- Photos are counted ---------------------------------------------------------------------------------------------

function work() {
  for (const item of all) {
    if (numAsking >= MAX_AT_ONCE) return;
    if (item.state === "waiting") answer(item);
  }
}

async function answer(item) {
  numAsking += 1;
  const { abort } = item;
  Object.assign(item, { state: "asking", note: "", failure: "" });
  update(item);
  try {
    const onWait = (seconds) => {
      item.note = `The server is busy; again in ${seconds} s.`;
      update(item);
    };
    const got = await count(item.file, item.expected, { signal: abort.signal, onWait });
    if (!abort.signal.aborted) Object.assign(item, got, { state: "done" });
  } catch (error) {
    if (!abort.signal.aborted) {
      const failure = error instanceof Refused ? error.message : `The page failed: ${error.message}`;
      Object.assign(item, { state: "failed", counted: null, verdict: null, failure });
    }
  }
  numAsking -= 1;
  if (!abort.signal.aborted) {
    update(item);
    tellProgress(item);
  }
  work();
}

/** Counts a photo anew, beside another expected quantity. */
function ask(item, expected) {
  item.abort.abort();
  Object.assign(item, { expected, verdict: null, state: "waiting", note: "", abort: new AbortController() });
  update(item);
  work();
}

function expect(item, field) {
  if (!field.checkValidity()) {
    field.reportValidity();
    return;
  }
  const expected = field.value === "" ? null : Number(field.value);
  if (expected !== item.expected) ask(item, expected);
}

function retry(item) {
  ask(item, item.expected);
}

function tellProgress(item) {
  if (all.length === 1) byId("status").textContent = sentenceOf(item);
  else if (all.every((one) => one.state === "done" || one.state === "failed")) {
    byId("status").textContent = showTally(all);
    sort();
  }
}

// --- What is shown --------------------------------------------------------------------------------------------------

function update(item) {
  fillRow(item);
  if (item === shown) showDetail(item);
  showTally(all);
}

/** One photo stands by itself, several in the table. */
function arrange() {
  const isOne = all.length === 1;
  byId("single").hidden = !isOne;
  byId("batch").hidden = all.length < 2;
  document.body.classList.toggle("busy", all.length > 0);
  byId("clear").hidden = all.length === 0;
  if (isOne) {
    byId("dialog").close();
    byId("single").append(byId("detail"));
    shown = all[0];
    showDetail(shown);
  } else if (!byId("dialog").open) shown = null;
  showTally(all);
}

function open(item) {
  shown = item;
  byId("dialog").append(byId("detail"));
  showDetail(item);
  byId("dialog").showModal();
}

/** Puts the rows in order, but never under the hands of somebody who is typing in one. */
function sort() {
  const body = byId("rows").tBodies[0];
  if (body.contains(document.activeElement) || byId("dialog").open) return;
  body.append(...recountOrder(all).map((item) => item.row));
}

function clear() {
  for (const item of all) {
    item.abort.abort();
    URL.revokeObjectURL(item.url);
    item.row.remove();
  }
  all = [];
  table = null;
  byId("table-note").replaceChildren();
  byId("status").textContent = "All photos are removed.";
  arrange();
  byId("photos").focus();
}

function save() {
  const url = URL.createObjectURL(new Blob([queueCsv(recountOrder(all))], { type: "text/csv" }));
  make("a", { href: url, download: "recount-queue.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // the download has begun by then
}

// --- The token ------------------------------------------------------------------------------------------------------

function askForToken(wasRefused) {
  const form = byId("token");
  byId("token-why").textContent = wasRefused ? "The server refused this token." : "This server asks for a token.";
  byId("dialog").close(); // nothing behind it could be reached
  form.hidden = false;
  byId("token-field").value = "";
  byId("token-field").focus();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      form.hidden = true;
      resolve(byId("token-field").value.trim());
      byId("photos").focus();
    };
  });
}

// --- Wiring ---------------------------------------------------------------------------------------------------------

function wire() {
  for (const id of ["photos", "camera", "table"]) {
    byId(id).addEventListener("change", (event) => {
      const files = [...event.target.files];
      event.target.value = ""; // else the same file could not be chosen twice
      take(files);
    });
  }
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) take([...event.clipboardData.files]);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    take([...event.dataTransfer.files]);
  });
  byId("expected").addEventListener("change", () => expect(shown, byId("expected")));
  byId("retry").addEventListener("click", () => {
    retry(shown);
    byId("detail").focus(); // the pressed button goes
  });
  byId("rows").addEventListener("focusout", () => setTimeout(sort));
  byId("dialog").addEventListener("close", () => {
    shown = null;
    sort();
  });
  byId("clear").addEventListener("click", clear);
  byId("export").addEventListener("click", save);
}

async function tellOfModel() {
  try {
    showModel(await model());
  } catch (error) {
    byId("model-facts").replaceChildren(make("dt", {}, "Unknown"), make("dd", {}, error.message));
  }
}

onUnauthorized(askForToken);
wire();
tellOfModel();
