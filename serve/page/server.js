// Requests to the API of the server that the page came from: its token, its "come back later", its words on failures.

const MAX_TRIES = 10; // of one request, while the server has no room
const MAX_WAIT_S = 30;
const NO_ANSWER_MS = 60_000; // the server itself gives up earlier; this is for a network that went away
const PHOTO_TYPES = ["image/jpeg", "image/png"];
const COME_BACK = [429, 503];

let token = "";
let tokenAsked = null; // a promise while somebody is asked for it, so that requests wait together

/** A request that got no answer; the message is for people. */
export class Refused extends Error {}

/** Sets what asks for a token: a function of (was one refused) that gives a promise of it. */
let askForToken = () => Promise.reject(new Refused("The server asks for a token."));
export function onUnauthorized(ask) {
  askForToken = ask;
}

/** Counts a photo, beside its record if there is one; `onWait(seconds)` is told of waits for room. */
export async function count(file, expected, { signal, onWait }) {
  const path = expected === null ? "v1/count" : `v1/verify?expected_quantity=${expected}`;
  const type = PHOTO_TYPES.includes(file.type) ? file.type : "application/octet-stream";
  const { body, ms } = await request(path, { method: "POST", body: file, type, signal, onWait });
  return expected === null ? { counted: body, verdict: null, ms } : { counted: body.counted, verdict: body, ms };
}

/** The card of the model. */
export async function model() {
  return (await request("v1/model", {})).body;
}

async function request(path, { method = "GET", body, type, signal, onWait = () => {} }) {
  for (let tries = 1; ; tries++) {
    const used = token;
    const begun = performance.now();
    const response = await send(path, { method, body, signal, headers: headersOf(type, used) });
    if (response.ok) return { body: await response.json(), ms: performance.now() - begun };
    if (response.status === 401) {
      await renewToken(used);
    } else if (COME_BACK.includes(response.status) && tries < MAX_TRIES) {
      const seconds = Math.min(Number(response.headers.get("Retry-After")) || 1, MAX_WAIT_S);
      onWait(seconds);
      await pause(seconds * (1 + Math.random() / 2), signal); // spread, so that not all come back at once
    } else {
      throw new Refused(await wordsOf(response));
    }
  }
}

async function send(path, options) {
  const limit = AbortSignal.timeout(NO_ANSWER_MS);
  const signal = options.signal ? AbortSignal.any([options.signal, limit]) : limit;
  try {
    return await fetch(path, { ...options, signal, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Refused(limit.aborted ? "The server does not answer." : "The server cannot be reached.");
  }
}

function headersOf(type, used) {
  const headers = {};
  if (type) headers["Content-Type"] = type;
  if (used) headers.Authorization = `Bearer ${used}`;
  return headers;
}

async function renewToken(used) {
  if (token !== used) return; // another request has a new one already
  tokenAsked ??= askForToken(used !== "").then((given) => {
    token = given;
    tokenAsked = null;
  });
  await tokenAsked;
}

/** The server's own words, or those of a proxy before it, which speaks no problem+json. */
async function wordsOf(response) {
  try {
    const problem = await response.json();
    if (problem.detail) return `${problem.detail[0].toUpperCase()}${problem.detail.slice(1).replace(/\.$/, "")}.`;
  } catch {
    // no JSON: the status has to do
  }
  return `The server answers ${response.status} ${response.statusText}.`;
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
