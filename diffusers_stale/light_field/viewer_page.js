// The page: what a person does becomes a state, and the state becomes a picture. docs/viewer.md tells of staleViewer.

const MAX_DENSITY = 4;
const SWAY_SECONDS = 7;
const EPI_LINES = 8; // to a camera's distance
const TILT_DEGREES = 18; // from the middle to the outermost camera
const MAX_SHARPNESS = 2.5; // device pixels a CSS pixel, at most

const element = (id) => document.getElementById(id);
const movie = JSON.parse(element("movie").textContent);
const flags = new URLSearchParams(location.search + "&" + location.hash.slice(1));
const embedded = movie.embed || flags.has("embed");
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches || flags.has("still");
const reach = { x: middleOf(movie.cols), y: middleOf(movie.rows) };
const largest = Math.max(reach.x, reach.y);

const state = {
  x: 0, y: 0, focus: movie.focus, aperture: 0, frame: 0, anaglyph: false, warp: true, smooth: false,
  density: MAX_DENSITY, row: middleOf(movie.height), baseline: Math.min(Math.max(reach.x, 1), movie.cols - 1),
};
const show = { epi: false, playing: false, loop: true, speed: 1, swaying: false, ready: false };
let canvas = element("picture"), renderer, wanted = 0, last = 0, due = 0, swayed = 0;

function makeRenderer() {
  if (!flags.has("canvas")) {
    try {
      return new WebGLRenderer(canvas, movie);
    } catch (error) {
      console.info(`staleViewer draws without WebGL2: ${error.message}`);
      const fresh = canvas.cloneNode(); // a canvas that has had one kind of context has no other
      canvas.replaceWith(fresh);
      canvas = fresh;
    }
  }
  return new CanvasRenderer(canvas, movie);
}

async function decoded(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const blob = new Blob([bytes], { type: "image/webp" });
  return createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
}

const depthMaps = [];
function keepDepth(bitmap) {
  const sheet = document.createElement("canvas");
  [sheet.width, sheet.height] = [bitmap.width, bitmap.height];
  const context = sheet.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const colors = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  depthMaps.push(Uint8Array.from({ length: colors.length / 4 }, (_, at) => colors[at * 4]));
}

async function load() {
  let source = movie.pictures.map((text, index) => [text, movie.depths[index]]);
  delete movie.pictures;
  delete movie.depths;
  for (const [picture, depth] of source) {
    const bitmaps = [await decoded(picture), depth ? await decoded(depth) : null];
    if (bitmaps[1]) keepDepth(bitmaps[1]);
    renderer.addFrame(...bitmaps);
    bitmaps.forEach((bitmap) => bitmap?.close());
  }
  source = null;
}

// Disparity of what stands at column x, row y of the picture, as the nearest camera sees it.
function disparityAt(x, y) {
  const map = depthMaps[state.frame], [col, row] = placeOf(movie, state).map(Math.round);
  if (!map) return movie.low;
  const dx = col - middleOf(movie.cols) - state.x, dy = row - middleOf(movie.rows) - state.y;
  let best = movie.low, least = Infinity;
  for (let level = 255; level >= 0; level--) {
    const d = movie.low + ((movie.high - movie.low) * level) / 255;
    const at = clamp(Math.round(x - d * dx), 0, movie.width - 1), line = clamp(Math.round(y - d * dy), 0, movie.height - 1);
    const apart = Math.abs(map[(row * movie.height + line) * movie.cols * movie.width + col * movie.width + at] - level);
    if (apart < least) [best, least] = [d, apart];
  }
  return best;
}

function draw() {
  renderer.render(state);
  renderer.show(state);
  if (show.epi) drawEpi();
  drawPad();
}

function drawEpi() {
  const sheet = element("epi"), image = renderer.epi(state, epiLines());
  [sheet.width, sheet.height] = [image.width, image.height];
  sheet.getContext("2d").putImageData(image, 0, 0);
  element("line").style.top = `${((state.row + 0.5) / movie.height) * 100}%`;
}

const epiLines = () => (movie.cols - 1) * EPI_LINES + 1;

function drawPad() {
  const pad = element("pad"), gap = 44 / Math.max(movie.cols, movie.rows, 3);
  const across = gap * movie.cols, down = gap * movie.rows;
  if (!pad.childElementCount) {
    pad.setAttribute("width", across);
    pad.setAttribute("height", down);
    for (let i = 0; i <= movie.cols * movie.rows; i++) pad.append(document.createElementNS("http://www.w3.org/2000/svg", "circle"));
    [...pad.children].forEach((dot, i) => {
      dot.setAttribute("cx", ((i % movie.cols) + 0.5) * gap);
      dot.setAttribute("cy", (Math.floor(i / movie.cols) + 0.5) * gap);
      dot.setAttribute("r", Math.min(1.8, gap / 4));
    });
    pad.lastChild.setAttribute("class", "head");
  }
  const [col, row] = placeOf(movie, state);
  pad.lastChild.setAttribute("cx", (col + 0.5) * gap);
  pad.lastChild.setAttribute("cy", (row + 0.5) * gap);
  pad.lastChild.setAttribute("r", Math.max(4.5, Math.min(state.aperture, largest) * gap));
}

// Time, and the idle sway, in one clock.
function tick(now) {
  wanted = 0;
  const passed = last ? Math.min(now - last, 250) / 1000 : 0;
  last = now;
  if (show.playing) {
    due += passed * movie.frameRate * show.speed;
    const steps = Math.floor(due);
    due -= steps;
    if (steps) advance(steps);
  }
  if (show.swaying) {
    swayed += passed;
    const angle = (2 * Math.PI * swayed) / SWAY_SECONDS, size = Math.min(1, swayed / 2);
    [state.x, state.y] = [reach.x * 0.8 * size * Math.sin(angle), reach.y * 0.4 * size * Math.sin(2 * angle)];
  }
  draw();
  if (show.playing || show.swaying) invalidate();
  else last = 0;
}

function advance(steps) {
  const next = state.frame + steps;
  if (next >= movie.frames && !show.loop) setPlaying(false);
  setTime(show.loop ? ((next % movie.frames) + movie.frames) % movie.frames : next);
}

function invalidate() {
  if (show.ready && !wanted) wanted = requestAnimationFrame(tick);
}

// State

function finite(name, value) {
  const number = Number(value);
  if (value === null || value === "" || !Number.isFinite(number)) throw new RangeError(`${name} must be a number, got ${value}`);
  return number;
}

function setHead(x, y) {
  show.swaying = false;
  state.x = clamp(finite("x", x), -reach.x, reach.x);
  state.y = clamp(finite("y", y), -reach.y, reach.y);
  element("hint").classList.add("gone");
  invalidate();
}

function setTime(index) {
  state.frame = clamp(Math.round(finite("frame", index)), 0, movie.frames - 1);
  fill("frame", state.frame, `${state.frame + 1} / ${movie.frames}`);
  invalidate();
}

function setPlaying(on) {
  show.playing = Boolean(on) && movie.frames > 1;
  if (show.playing && !show.loop && state.frame === movie.frames - 1) setTime(0);
  element("play").classList.toggle("playing", show.playing);
  element("play").setAttribute("aria-label", show.playing ? "Pause" : "Play");
  due = 0;
  invalidate();
}

function setFocus(value) {
  const most = Math.min((movie.width - 1) / 2 / Math.max(reach.x, 0.5), (movie.height - 1) / 2 / Math.max(reach.y, 0.5));
  state.focus = clamp(finite("focus", value), -most, most);
  fill("focus", state.focus, `${state.focus.toFixed(2)} px`);
  invalidate();
}

function setAperture(value) {
  state.aperture = clamp(finite("aperture", value), 0, largest);
  fill("aperture", state.aperture, state.aperture ? state.aperture.toFixed(2) : "sharp");
  invalidate();
}

function fill(id, value, text) {
  const input = element(id), { min, max } = input;
  input.value = value;
  input.style.setProperty("--part", `${((value - min) / (max - min || 1)) * 100}%`);
  input.setAttribute("aria-valuetext", text);
  element(`${id}Out`).textContent = text;
}

function toggle(id, on, apply) {
  element(id).setAttribute("aria-pressed", String(Boolean(on)));
  apply(Boolean(on));
  invalidate();
}

const setAnaglyph = (on) => toggle("anaglyph", on && movie.cols > 1, (value) => { state.anaglyph = value; });
const setSmooth = (on) => toggle("smooth", on, (value) => { state.smooth = value; });
const setLoop = (on) => toggle("loop", on, (value) => { show.loop = value; });
const setEpi = (on) => toggle("epiToggle", on && movie.cols > 1, (value) => {
  show.epi = value;
  element("epi").hidden = element("line").hidden = !value;
});

function setRow(row) {
  state.row = clamp(Math.floor(finite("row", row)), 0, movie.height - 1);
  if (show.epi) invalidate();
}

function reset() {
  setHead(0, 0);
  setFocus(movie.focus);
  setAperture(0);
}

// Hands

const drag = { id: null, x: 0, y: 0, far: 0 };

function startHands() {
  canvas.addEventListener("pointerdown", (event) => {
    if (drag.id !== null || event.button) return;
    Object.assign(drag, { id: event.pointerId, x: event.clientX, y: event.clientY, far: 0 });
    canvas.setPointerCapture(event.pointerId);
    canvas.classList.add("held");
    show.swaying = false;
  });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    setRow(((event.clientY - box.top) / box.height) * movie.height);
    if (event.pointerId !== drag.id) return;
    const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
    Object.assign(drag, { x: event.clientX, y: event.clientY, far: drag.far + Math.hypot(dx, dy) });
    if (drag.far > 4) setHead(state.x + (dx / box.width) * 2 * reach.x, state.y + (dy / box.height) * 2 * reach.y);
  });
  const release = (event) => {
    if (event.pointerId !== drag.id) return;
    if (event.type === "pointerup" && drag.far <= 4) focusAt(event);
    drag.id = null;
    canvas.classList.remove("held");
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("keydown", onKey);
}

function focusAt(event) {
  const box = canvas.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * movie.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * movie.height);
  setRow(y);
  setFocus(disparityAt(x, y));
  if (state.aperture === 0) setAperture(largest);
  element("hint").classList.add("gone");
}

function onKey(event) {
  const step = event.shiftKey ? 0.25 : 0.1;
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const acts = {
    " ": () => setPlaying(!show.playing),
    ",": () => { setPlaying(false); advance(-1); },
    ".": () => { setPlaying(false); advance(1); },
    Home: reset,
    PageUp: () => setRow(state.row - 1),
    PageDown: () => setRow(state.row + 1),
  };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (moves[event.key]) {
    const [x, y] = moves[event.key];
    setHead(state.x + x * step * reach.x, state.y + y * step * reach.y);
    element("said").textContent = `Head ${state.x.toFixed(1)} right, ${state.y.toFixed(1)} down`;
  } else if (acts[event.key]) acts[event.key]();
  else return;
  event.preventDefault();
}

let upright = null;
function onTilt({ beta, gamma }) {
  if (beta === null || gamma === null || drag.id !== null) return;
  const turn = ((screen.orientation?.angle ?? 0) * Math.PI) / 180, [c, s] = [Math.cos(turn), Math.sin(turn)];
  upright ??= { beta, gamma };
  const [right, down] = [gamma - upright.gamma, beta - upright.beta];
  setHead((reach.x * (c * right + s * down)) / TILT_DEGREES, (reach.y * (c * down - s * right)) / TILT_DEGREES);
}

async function setTilt(on) {
  if (on && typeof DeviceOrientationEvent.requestPermission === "function") {
    const answer = await DeviceOrientationEvent.requestPermission().catch(() => "denied");
    if (answer !== "granted") {
      element("said").textContent = "The phone does not allow tilt";
      on = false;
    }
  }
  upright = null;
  removeEventListener("deviceorientation", onTilt);
  if (on) addEventListener("deviceorientation", onTilt);
  toggle("tilt", on, () => {});
}

function startControls() {
  const span = Math.max(movie.high - movie.low, 0.5);
  element("focus").min = Math.min(movie.low - 0.1 * span, movie.focus);
  element("focus").max = Math.max(movie.high + 0.1 * span, movie.focus);
  element("aperture").max = largest;
  element("frame").max = movie.frames - 1;
  element("frame").addEventListener("input", (event) => { setPlaying(false); setTime(event.target.value); });
  element("focus").addEventListener("input", (event) => setFocus(event.target.value));
  element("aperture").addEventListener("input", (event) => setAperture(event.target.value));
  element("play").addEventListener("click", () => setPlaying(!show.playing));
  element("anaglyph").addEventListener("click", () => setAnaglyph(!state.anaglyph));
  element("epiToggle").addEventListener("click", () => setEpi(!show.epi));
  element("smooth").addEventListener("click", () => setSmooth(!state.smooth));
  element("loop").addEventListener("click", () => setLoop(!show.loop));
  element("reset").addEventListener("click", reset);
  element("tilt").addEventListener("click", (event) => setTilt(event.target.getAttribute("aria-pressed") !== "true"));
  element("speed").addEventListener("change", (event) => { show.speed = Number(event.target.value); });
  element("tilt").hidden = !("DeviceOrientationEvent" in window && matchMedia("(pointer: coarse)").matches && largest);
  element("timeRow").hidden = element("loop").hidden = element("speed").hidden = movie.frames === 1;
  element("focusRow").hidden = element("apertureRow").hidden = element("pad").hidden = element("hint").hidden = !largest;
  element("anaglyph").hidden = element("epiToggle").hidden = movie.cols === 1;
}

function fitCanvas() {
  const sharpness = Math.min(devicePixelRatio || 1, MAX_SHARPNESS), box = canvas.getBoundingClientRect();
  const width = Math.max(1, Math.round(box.width * sharpness)), height = Math.max(1, Math.round(box.height * sharpness));
  if (canvas.width === width && canvas.height === height) return;
  [canvas.width, canvas.height] = [width, height];
  if (show.ready) draw(); // at once: a resized canvas is empty
}

async function start() {
  document.body.classList.toggle("embed", embedded);
  document.querySelector("main").style.setProperty("--shape", movie.width / movie.height);
  renderer = makeRenderer();
  canvas.setAttribute("aria-label", `${movie.title}: ${movie.rows} by ${movie.cols} cameras, ${movie.frames} frames`);
  startControls();
  await load();
  startHands();
  setTime(0);
  setFocus(movie.focus);
  setAperture(0);
  show.ready = true;
  element("loading").hidden = true;
  new ResizeObserver(fitCanvas).observe(canvas);
  fitCanvas();
  draw();
  show.swaying = !calm && largest > 0;
  setPlaying(!calm);
  invalidate();
}

function still() {
  show.swaying = false;
  renderer.render(state);
}

const numbers = ({ width, height, data }) => ({ width, height, data: Array.from(data) });

window.staleViewer = {
  ready: start().catch((error) => {
    element("loading").textContent = `This browser cannot show the movie: ${error.message}`;
    throw error;
  }),
  get renderer() { return renderer.constructor.name_; },
  get state() { return { ...state, ...show }; },
  setHead,
  setFocus,
  setAperture,
  setFrame(index) { setPlaying(false); setTime(index); },
  setPlaying,
  setSpeed(factor) { show.speed = Math.max(finite("speed", factor), 0); },
  setLoop,
  setAnaglyph,
  setBaseline(views) { state.baseline = clamp(finite("baseline", views), 0, movie.cols - 1); invalidate(); },
  setEpi,
  setRow,
  setSmooth,
  setWarp(on) { state.warp = Boolean(on); invalidate(); },
  setDensity(count) { state.density = clamp(Math.round(finite("density", count)), 1, MAX_DENSITY); invalidate(); },
  disparityAt,
  reset,
  pixels() { still(); return numbers(renderer.pixels()); },
  epiPixels() { return numbers(renderer.epi(state, epiLines())); },
};
