// What both ways of drawing share, and the way without graphics hardware: the same arithmetic as viewer_webgl.js, in
// plain arrays, on a 2D canvas.

const DUBOIS_LEFT = [0.437, 0.449, 0.164, -0.062, -0.062, -0.024, -0.048, -0.05, -0.017];
const DUBOIS_RIGHT = [-0.011, -0.032, -0.007, 0.377, 0.761, 0.009, -0.026, -0.093, 1.234];

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const middleOf = (count) => (count - 1) / 2;

// Where the head is among the cameras: column, row; 0 is the first.
function placeOf(movie, state) {
  const { cols, rows } = movie;
  return [clamp(state.x + middleOf(cols), 0, cols - 1), clamp(state.y + middleOf(rows), 0, rows - 1)];
}

// The two eyes about the head, as far from each other as the movie allows and the state wants.
function eyes(movie, state) {
  const half = Math.min(state.baseline, movie.cols - 1) / 2, [col, row] = placeOf(movie, state);
  const middle = clamp(col, half, movie.cols - 1 - half);
  return [[middle - half, row], [middle + half, row]];
}

// How many steps a ray needs so that it moves by at most half a pixel in each.
const rayStrides = (movie) => clamp(Math.ceil((movie.high - movie.low) * 2), 1, 96);

// Views that stand for the lens: `density` to a camera's distance, as many as are affordable. Where the lens is
// smaller than their distance, the view of the head itself counts (`direct`).
function lensOf(movie, state, maxPixels, maxSide) {
  const sizes = (n) => [(movie.cols - 1) * n + 1, (movie.rows - 1) * n + 1];
  const fits = (n) => {
    const [cols, rows] = sizes(n), width = cols * movie.width, height = rows * movie.height;
    return width * height <= maxPixels && Math.max(width, height) <= maxSide;
  };
  let density = state.density;
  while (density > 1 && !fits(density)) density--;
  const [cols, rows] = sizes(density);
  return { density, cols, rows, direct: clamp(1 - 2 * state.aperture * density, 0, 1) };
}

// R. Keys, 1981, a = -1/2: weights of the pixels at -1, 0, 1, 2.
const keys = (t) => [
  ((-0.5 * t + 1) * t - 0.5) * t, (1.5 * t - 2.5) * t * t + 1, ((-1.5 * t + 2) * t + 0.5) * t, (0.5 * t - 0.5) * t * t,
];

const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const shown = (v) => (v <= 0.0031308 ? v * 12.92 : 1.055 * v ** (1 / 2.4) - 0.055);

class CanvasRenderer {
  static name_ = "canvas";

  constructor(canvas, movie) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    if (!this.context) throw new Error("this browser can draw nothing");
    this.movie = movie;
    this.frames = [];
    this.film = document.createElement("canvas");
    [this.film.width, this.film.height] = [movie.width, movie.height];
    this.filmContext = this.film.getContext("2d", { alpha: false });
    this.maxDensePixels = 2.5e5;
    this.denseKey = "";
  }

  addFrame(picture, depth) {
    this.frames.push({ views: this.bytes(picture), depths: depth ? this.bytes(depth) : null });
  }

  bytes(picture) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [picture.width, picture.height];
    const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    return context.getImageData(0, 0, picture.width, picture.height).data;
  }

  depth(scene, col, row, x, y) {
    const { width, height, cols, low, high } = this.movie;
    const at = clamp(Math.floor(x + 0.5), 0, width - 1), line = clamp(Math.floor(y + 0.5), 0, height - 1);
    return low + ((high - low) * scene.depths[((row * height + line) * cols * width + col * width + at) * 4]) / 255;
  }

  // The disparity that a camera sees on the ray of a pixel, or null: `follow` of viewer_webgl.js.
  follow(scene, col, row, x, y, dx, dy) {
    const { low, high } = this.movie, steps = rayStrides(this.movie);
    const stride = (high - low) / steps, least = 1e-4 * (high - low);
    let behind = false;
    for (let i = 0; i <= steps; i++) {
      const d = high - stride * i, there = this.depth(scene, col, row, x - d * dx, y - d * dy);
      if (there < d - least) { behind = false; continue; }
      if (!behind && there - d <= 3 * stride + least) return there;
      behind = true;
    }
    return null;
  }

  // Adds weight * (pixel at x, y of a view) to sum.
  sample(data, stride, left, top, x, y, weight, sum) {
    const { width, height } = this.movie, wx = Math.floor(x), wy = Math.floor(y);
    if (x === wx && y === wy) {
      const at = ((top + clamp(wy, 0, height - 1)) * stride + left + clamp(wx, 0, width - 1)) * 4;
      for (let c = 0; c < 3; c++) sum[c] += weight * data[at + c];
      return;
    }
    const across = keys(x - wx), down = keys(y - wy);
    for (let j = 0; j < 4; j++) {
      const line = (top + clamp(wy + j - 1, 0, height - 1)) * stride + left;
      for (let i = 0; i < 4; i++) {
        const at = (line + clamp(wx + i - 1, 0, width - 1)) * 4, share = weight * across[i] * down[j];
        for (let c = 0; c < 3; c++) sum[c] += share * data[at + c];
      }
    }
  }

  // Pixel (x, y) as a camera at place sees it, into `out` as three numbers up to 255: `seen` of viewer_webgl.js.
  seen(scene, x, y, [col, row], out) {
    const { cols, width, height, low: lowest } = this.movie;
    const low = [Math.floor(col + 1e-3), Math.floor(row + 1e-3)];
    const part = [col - low[0], row - low[1]].map((share) => (share < 1e-3 ? 0 : share));
    const corners = [];
    let nearest = lowest;
    for (let k = 0; k < 4; k++) {
      const side = [k & 1, k >> 1];
      const weight = (side[0] ? part[0] : 1 - part[0]) * (side[1] ? part[1] : 1 - part[1]);
      if (weight === 0) continue;
      const c = low[0] + side[0], r = low[1] + side[1], dx = c - col, dy = r - row;
      let found = 0;
      if (scene.warp) found = dx || dy ? this.follow(scene, c, r, x, y, dx, dy) : this.depth(scene, c, r, x, y);
      if (found !== null) nearest = Math.max(nearest, found);
      corners.push({ weight, c, r, dx, dy, found });
    }
    const sum = [0, 0, 0];
    let total = 0;
    for (const { weight, c, r, dx, dy, found } of corners) {
      let share = weight;
      if (scene.warp) share *= found === null ? 1e-6 : Math.max(Math.exp(-0.7 * (nearest - found)), 1e-4);
      const d = found === null ? lowest : found;
      this.sample(scene.views, cols * width, c * width, r * height, x - d * dx, y - d * dy, share, sum);
      total += share;
    }
    for (let c = 0; c < 3; c++) out[c] = clamp(sum[c] / total, 0, 255);
  }

  scene(state) {
    const { views, depths } = this.frames[state.frame];
    return { views, depths, warp: state.warp && depths !== null };
  }

  // Calls draw(x, y, color) for every pixel and returns the picture.
  paint(width, height, draw) {
    const image = new ImageData(width, height), color = [0, 0, 0];
    for (let y = 0, at = 0; y < height; y++) for (let x = 0; x < width; x++, at += 4) {
      draw(x, y, color);
      for (let c = 0; c < 3; c++) image.data[at + c] = Math.round(color[c]);
      image.data[at + 3] = 255;
    }
    return image;
  }

  render(state) {
    const { width, height } = this.movie, scene = this.scene(state), place = placeOf(this.movie, state);
    if (state.anaglyph) this.image = this.anaglyph(state, scene);
    else {
      this.image = this.paint(width, height, (x, y, color) => this.seen(scene, x, y, place, color));
      if (state.aperture > 0) this.image = this.refocus(state, scene, place, this.image);
    }
    this.filmContext.putImageData(this.image, 0, 0);
  }

  refocus(state, scene, head, sharp) {
    const { width, height } = this.movie, lens = lensOf(this.movie, state, this.maxDensePixels, 4096);
    const sums = new Float32Array(width * height * 4), color = [0, 0, 0];
    for (let at = 0; at < sums.length; at += 4) {
      for (let c = 0; c < 3; c++) sums[at + c] = lens.direct * sharp.data[at + c];
      sums[at + 3] = lens.direct;
    }
    const inside = (p, last) => Math.max(0, 1 - Math.max(0, -p, p - last));
    this.dense(state, scene, lens).forEach((view, index) => {
      const place = [(index % lens.cols) / lens.density, Math.floor(index / lens.cols) / lens.density];
      const [dx, dy] = [place[0] - head[0], place[1] - head[1]];
      const weight = clamp((state.aperture - Math.hypot(dx, dy)) * lens.density + 0.5, 0, 1);
      if (weight === 0) return;
      for (let y = 0, at = 0; y < height; y++) for (let x = 0; x < width; x++, at += 4) {
        const fx = x - state.focus * dx, fy = y - state.focus * dy;
        const share = weight * inside(fx, width - 1) * inside(fy, height - 1);
        if (share === 0) continue;
        color.fill(0);
        this.sample(view.data, width, 0, 0, fx, fy, share, color);
        for (let c = 0; c < 3; c++) sums[at + c] += color[c];
        sums[at + 3] += share;
      }
    });
    return this.paint(width, height, (x, y, color_) => {
      const at = (y * width + x) * 4;
      for (let c = 0; c < 3; c++) color_[c] = clamp(sums[at + c] / sums[at + 3], 0, 255);
    });
  }

  // All views of the lens; kept until time or density change.
  dense(state, scene, { density, cols, rows }) {
    const { width, height } = this.movie, key = [state.frame, density, scene.warp].join();
    if (this.denseKey === key) return this.denseViews;
    this.denseViews = Array.from({ length: rows * cols }, (_, index) => {
      const place = [(index % cols) / density, Math.floor(index / cols) / density];
      return this.paint(width, height, (x, y, color) => this.seen(scene, x, y, place, color));
    });
    this.denseKey = key;
    return this.denseViews;
  }

  anaglyph(state, scene) {
    const { width, height } = this.movie, [left, right] = eyes(this.movie, state);
    const half = (right[0] - left[0]) / 2;
    const [a, b] = [[left, -half], [right, half]].map(([place, side]) => {
      const view = this.paint(width, height, (x, y, color) => this.seen(scene, x, y, place, color));
      const shift = state.focus * side;
      return (x, y) => {
        const color = [0, 0, 0];
        this.sample(view.data, width, 0, 0, x - shift, y, 1, color);
        return color.map((value) => linear(clamp(value / 255, 0, 1)));
      };
    });
    return this.paint(width, height, (x, y, color) => {
      const l = a(x, y), r = b(x, y);
      for (let c = 0; c < 3; c++) {
        let light = 0;
        for (let k = 0; k < 3; k++) light += DUBOIS_LEFT[c * 3 + k] * l[k] + DUBOIS_RIGHT[c * 3 + k] * r[k];
        color[c] = 255 * shown(clamp(light, 0, 1));
      }
    });
  }

  pixels() { return this.image; }

  epi(state, count) {
    const scene = this.scene(state), { cols, width } = this.movie, row = placeOf(this.movie, state)[1];
    const col = (y) => (count > 1 ? (y * (cols - 1)) / (count - 1) : 0);
    return this.paint(width, count, (x, y, color) => this.seen(scene, x, state.row, [col(y), row], color));
  }

  show(state) {
    this.context.imageSmoothingEnabled = state.smooth;
    this.context.imageSmoothingQuality = "high";
    this.context.drawImage(this.film, 0, 0, this.canvas.width, this.canvas.height);
  }
}
