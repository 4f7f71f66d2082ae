// Tables of records that come in, the recount queue that goes out, and its order. Knows nothing of the page.

const FILE_NAMES = ["file", "filename", "file_name", "photo", "image", "name", "bin", "bin_id"];
const QUANTITY_NAMES = ["expected_quantity", "expected quantity", "expected", "quantity", "qty", "count"];
const MAX_QUANTITY = 100_000;

/** The cells of CSV: commas, semicolons or tabs, whichever the first line has most of; quotes as in RFC 4180. */
export function parseCsv(text) {
  const source = text.replace(/^\uFEFF/, "");
  const first = source.slice(0, (source.search(/[\r\n]/) + 1 || source.length + 1) - 1);
  const many = (mark) => first.split(mark).length;
  const delimiter = [",", ";", "\t"].reduce((best, mark) => (many(mark) > many(best) ? mark : best));
  const rows = [];
  let row = [];
  let cell = "";
  let quoted = false;
  for (let at = 0; at < source.length; at++) {
    const mark = source[at];
    if (quoted) {
      if (mark !== '"') cell += mark;
      else if (source[at + 1] === '"') cell += source[++at];
      else quoted = false;
    } else if (mark === '"' && cell === "") quoted = true;
    else if (mark === delimiter) {
      row.push(cell);
      cell = "";
    } else if (mark === "\n") {
      rows.push([...row, cell]);
      row = [];
      cell = "";
    } else if (mark !== "\r") cell += mark;
  }
  rows.push([...row, cell]);
  return rows.map((cells) => cells.map((one) => one.trim()));
}

/** Expected quantities by photo, and a sentence for each row that gives none. */
export function readRecords(text) {
  const rows = parseCsv(text);
  const head = rows[0].map((name) => name.toLowerCase());
  const fileAt = head.findIndex((name) => FILE_NAMES.includes(name));
  const named = QUANTITY_NAMES.find((name) => head.includes(name));
  const hasHead = fileAt >= 0 && named !== undefined;
  const [fileColumn, quantityColumn] = hasHead ? [fileAt, head.indexOf(named)] : [0, 1];
  const quantities = new Map();
  const problems = [];
  for (const [index, cells] of rows.entries()) {
    const file = cells[fileColumn] ?? "";
    const quantity = cells[quantityColumn] ?? "";
    if ((hasHead && index === 0) || cells.every((cell) => cell === "")) continue;
    if (file === "") problems.push(`Row ${index + 1} names no photo.`);
    else if (!/^\d+(\.0+)?$/.test(quantity) || Number(quantity) > MAX_QUANTITY)
      problems.push(`Row ${index + 1}, ${file}: “${quantity}” is no whole number from 0 to ${MAX_QUANTITY}.`);
    else if (quantities.has(keyOf(file))) problems.push(`Row ${index + 1} names ${file} a second time.`);
    else quantities.set(keyOf(file), Number(quantity));
  }
  return { quantities, problems };
}

/** What a row and a photo are matched by: the file name without folder, letter case and .jpg or .png. */
export function keyOf(name) {
  return name.split(/[\\/]/).pop().toLowerCase().replace(/\.(jpe?g|png)$/, "");
}

/** Photos as people should count them again: least p(match) first, then what the model can say nothing of. */
export function recountOrder(items) {
  return [...items].sort((a, b) => groupOf(a) - groupOf(b) || withinGroup(a, b));
}

function groupOf(item) {
  if (item.state === "failed") return 3;
  if (item.state !== "done") return 4;
  if (!item.verdict) return 2;
  return item.verdict.p_match === null ? 1 : 0;
}

function withinGroup(a, b) {
  if (!a.verdict || !b.verdict) return 0; // as they came
  return (a.verdict.p_match ?? 0) - (b.verdict.p_match ?? 0) || discrepancy(b) - discrepancy(a);
}

/** By how many items photo and record are expected to differ. */
function discrepancy({ counted, verdict }) {
  const chances = Object.entries(counted.probabilities);
  return chances.reduce((sum, [count, p]) => sum + p * Math.abs(count - verdict.expected_quantity), 0);
}

const COLUMNS = {
  rank: (item, index) => index + 1,
  file: (item) => item.file.name,
  expected_quantity: (item) => item.expected,
  verdict: (item) => item.verdict?.verdict,
  p_match: (item) => item.verdict?.p_match?.toFixed(6),
  count: (item) => item.counted?.count,
  range_low: (item) => item.counted?.range?.low,
  range_high: (item) => item.counted?.range?.high,
  expected_value: (item) => item.counted?.expected_value.toFixed(3),
  flags: (item) => item.counted?.photo.flags.join(" "),
  explanation: (item) => item.verdict?.explanation,
  error: (item) => (item.state === "done" ? "" : item.failure || "not counted yet"),
  model_version: (item) => item.counted?.model.version,
  request_id: (item) => item.counted?.request_id,
};

/** The queue as CSV, which spreadsheets open, and which this page takes as a record table. */
export function queueCsv(items) {
  const rows = items.map((item, index) => Object.values(COLUMNS).map((value) => value(item, index)));
  return `\uFEFF${[Object.keys(COLUMNS), ...rows].map((row) => row.map(quote).join(",")).join("\r\n")}\r\n`;
}

function quote(value) {
  const text = String(value ?? "").replace(/^[=+\-@\t]/, "'$&"); // else a spreadsheet runs a file name as a formula
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
