// Draws with WebGL2: a film of the movie's own size, which is then enlarged onto the canvas.
// Signs as in axes.py: what stands at p in the wanted view, with disparity d, stands at p - d * delta in a camera that
// is `delta` views (right, down) away from it. Textures and films have their first row at the top.

const VERTICES = `#version 300 es
void main() {
  vec2 corner = vec2(float(gl_VertexID & 1), float(gl_VertexID >> 1)) * 4.0 - 1.0;
  gl_Position = vec4(corner, 0.0, 1.0);
}`;

const CUBIC = `
vec4 keys(float t) {  // R. Keys, 1981, a = -1/2: weights of the pixels at -1, 0, 1, 2
  return vec4(((-0.5 * t + 1.0) * t - 0.5) * t, (1.5 * t - 2.5) * t * t + 1.0,
    ((-1.5 * t + 2.0) * t + 0.5) * t, (0.5 * t - 0.5) * t * t);
}
vec3 texel(sampler2D atlas, ivec2 view, ivec2 size, ivec2 p) {
  return texelFetch(atlas, view * size + clamp(p, ivec2(0), size - 1), 0).rgb;
}
vec3 cubic(sampler2D atlas, ivec2 view, ivec2 size, vec2 p) {
  vec2 whole = floor(p), part = p - whole;
  ivec2 at = ivec2(whole);
  if (part == vec2(0.0)) return texel(atlas, view, size, at);
  vec4 across = keys(part.x), down = keys(part.y);
  vec3 sum = vec3(0.0);
  for (int y = 0; y < 4; y++) {
    vec3 row = vec3(0.0);
    for (int x = 0; x < 4; x++) row += across[x] * texel(atlas, view, size, at + ivec2(x, y) - 1);
    sum += down[y] * row;
  }
  return sum;
}`;

const SEEN = `
uniform sampler2D views, depths;
uniform ivec2 grid, size;
uniform vec2 range;
uniform int steps;
uniform bool warp;
float depth(ivec2 view, vec2 p) {
  ivec2 at = clamp(ivec2(floor(p + 0.5)), ivec2(0), size - 1);
  return mix(range.x, range.y, texelFetch(depths, view * size + at, 0).r);
}
// Whether a camera sees the thing that pixel p of the wanted view shows, and the disparity of that thing: the ray is
// followed from near to far. Where it passes behind something that the camera sees, it is lost until it comes out.
// Three strides (1.5 pixels) are taken for a slope, or for the edge of something thin, and no such passing.
bool follow(ivec2 view, vec2 p, vec2 delta, out float found) {
  float stride = (range.y - range.x) / float(steps), least = 1e-4 * (range.y - range.x);
  bool behind = false;
  for (int i = 0; i <= steps; i++) {
    float d = range.y - stride * float(i), there = depth(view, p - d * delta);
    if (there < d - least) { behind = false; continue; }
    if (!behind && there - d <= 3.0 * stride + least) { found = there; return true; }
    behind = true;
  }
  found = range.x;
  return false;
}
// Pixel p as a camera at \`place\` (column, row of the grid) sees it.
vec3 seen(vec2 p, vec2 place) {
  vec2 held = clamp(place, vec2(0.0), vec2(grid - 1)), low = floor(held + 1e-3);
  vec2 part = max(held - low, 0.0);
  part *= step(1e-3, part);
  float found[4], weights[4];
  bool sees[4];
  float nearest = range.x;
  for (int k = 0; k < 4; k++) {
    vec2 side = vec2(float(k & 1), float(k >> 1)), share = mix(1.0 - part, part, side);
    weights[k] = share.x * share.y;
    found[k] = 0.0;
    sees[k] = true;
    if (weights[k] == 0.0 || !warp) continue;
    vec2 delta = low + side - held;
    if (delta == vec2(0.0)) found[k] = depth(ivec2(low + side), p);
    else sees[k] = follow(ivec2(low + side), p, delta, found[k]);
    if (sees[k]) nearest = max(nearest, found[k]);
  }
  vec3 sum = vec3(0.0);
  float total = 0.0;
  // Cameras that disagree about what is there do so at edges, whose mixed pixels a gentle preference keeps smooth.
  for (int k = 0; k < 4; k++) {
    if (weights[k] == 0.0) continue;
    vec2 view = low + vec2(float(k & 1), float(k >> 1));
    float weight = weights[k];
    if (warp) weight *= sees[k] ? max(exp(-0.7 * (nearest - found[k])), 1e-4) : 1e-6;
    sum += weight * cubic(views, ivec2(view), size, p - found[k] * (view - held));
    total += weight;
  }
  return clamp(sum / total, 0.0, 1.0);
}`;

const PROGRAMS = {
  // One view, for the head and for every view between cameras.
  view: `${SEEN}
uniform vec2 place, corner;
out vec4 color;
void main() { color = vec4(seen(gl_FragCoord.xy - 0.5 - corner, place), 1.0); }`,

  // Shift and add (refocus.py): views at every 1 / density of a camera's distance, weighted by the lens about the head.
  refocus: `
uniform sampler2D dense, sharp;
uniform ivec2 denseGrid, size;
uniform vec2 head;
uniform float spacing, aperture, focus, direct;
out vec4 color;
float inside(float p, float last) { return max(0.0, 1.0 - max(0.0, max(-p, p - last))); }
void main() {
  vec2 p = gl_FragCoord.xy - 0.5;
  vec3 sum = direct * texelFetch(sharp, ivec2(p), 0).rgb;
  float total = direct;
  for (int row = 0; row < denseGrid.y; row++) for (int col = 0; col < denseGrid.x; col++) {
    vec2 delta = vec2(col, row) * spacing - head;
    float weight = clamp((aperture - length(delta)) / spacing + 0.5, 0.0, 1.0);
    if (weight == 0.0) continue;
    vec2 from = p - focus * delta;
    weight *= inside(from.x, float(size.x - 1)) * inside(from.y, float(size.y - 1));
    if (weight == 0.0) continue;
    sum += weight * cubic(dense, ivec2(col, row), size, from);
    total += weight;
  }
  color = vec4(clamp(sum / total, 0.0, 1.0), 1.0);
}`,

  // Red-cyan glasses: Dubois' matrices, in linear light (displays.py). The focal plane stands on the screen.
  anaglyph: `${SEEN}
uniform vec2 left, right;
uniform float focus;
uniform mat3 leftEye, rightEye;
out vec4 color;
vec3 linear(vec3 v) { return mix(pow((v + 0.055) / 1.055, vec3(2.4)), v / 12.92, lessThanEqual(v, vec3(0.04045))); }
vec3 shown(vec3 v) {
  v = clamp(v, 0.0, 1.0);
  return mix(1.055 * pow(max(v, 1e-9), vec3(1.0 / 2.4)) - 0.055, v * 12.92, lessThanEqual(v, vec3(0.0031308)));
}
vec3 eye(vec2 p, vec2 place, float shift) {
  float whole = floor(p.x - shift), part = p.x - shift - whole;
  if (part < 1e-4) return seen(vec2(clamp(whole, 0.0, float(size.x - 1)), p.y), place);
  vec4 weights = keys(part);
  vec3 sum = vec3(0.0);
  for (int i = 0; i < 4; i++)
    sum += weights[i] * seen(vec2(clamp(whole + float(i - 1), 0.0, float(size.x - 1)), p.y), place);
  return clamp(sum, 0.0, 1.0);
}
void main() {
  vec2 p = gl_FragCoord.xy - 0.5;
  float half_ = (right.x - left.x) / 2.0;
  vec3 both = leftEye * linear(eye(p, left, -focus * half_)) + rightEye * linear(eye(p, right, focus * half_));
  color = vec4(shown(both), 1.0);
}`,

  // One row of pixels, as the cameras of a row see it from left (top) to right (bottom).
  epi: `${SEEN}
uniform float row, line, count;
out vec4 color;
void main() {
  vec2 p = gl_FragCoord.xy - 0.5;
  float col = count > 1.0 ? p.y * float(grid.x - 1) / (count - 1.0) : 0.0;
  color = vec4(seen(vec2(p.x, line), vec2(col, row)), 1.0);
}`,

  // A film enlarged: crisp pixels with smooth borders, or cubic.
  show: `
uniform sampler2D film;
uniform ivec2 size;
uniform vec2 screen;
uniform bool smoothly;
out vec4 color;
void main() {
  vec2 p = vec2(gl_FragCoord.x, screen.y - gl_FragCoord.y) / screen * vec2(size) - 0.5;
  vec2 zoom = max(screen / vec2(size), 1.0), whole = floor(p), part = p - whole;
  if (smoothly) { color = vec4(clamp(cubic(film, ivec2(0), size, p), 0.0, 1.0), 1.0); return; }
  part = clamp((part - 0.5) * zoom + 0.5, 0.0, 1.0);
  ivec2 at = ivec2(whole);
  vec3 top = mix(texel(film, ivec2(0), size, at), texel(film, ivec2(0), size, at + ivec2(1, 0)), part.x);
  vec3 low = mix(texel(film, ivec2(0), size, at + ivec2(0, 1)), texel(film, ivec2(0), size, at + 1), part.x);
  color = vec4(mix(top, low, part.y), 1.0);
}`,
};

class WebGLRenderer {
  static name_ = "webgl2";

  // Throws where the browser has no WebGL2, or not enough of it.
  constructor(canvas, movie) {
    this.movie = movie;
    this.gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false, powerPreference: "default" });
    if (!this.gl) throw new Error("WebGL2 is missing");
    this.largest = this.gl.getParameter(this.gl.MAX_TEXTURE_SIZE);
    if (Math.max(movie.cols * movie.width, movie.rows * movie.height) > this.largest) throw new Error("too large");
    this.programs = Object.fromEntries(Object.entries(PROGRAMS).map(([name, text]) => [name, this.program(text)]));
    this.gl.bindVertexArray(this.gl.createVertexArray());
    this.films = {};
    this.frames = [];
    this.maxDensePixels = 2e6;
  }

  program(fragments) {
    const gl = this.gl, program = gl.createProgram();
    const precision = "precision highp float; precision highp int; precision highp sampler2D;";
    const head = `#version 300 es\n${precision}`;
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTICES], [gl.FRAGMENT_SHADER, head + CUBIC + fragments]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    const uniforms = {};
    for (let i = 0; i < gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS); i++) {
      const { name, type } = gl.getActiveUniform(program, i);
      uniforms[name] = { type, place: gl.getUniformLocation(program, name) };
    }
    return { program, uniforms };
  }

  addFrame(picture, depth) {
    this.frames.push({ views: this.texture(picture), depths: depth ? this.texture(depth) : null });
  }

  texture(source, width, height) {
    const gl = this.gl, texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
    gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
    if (source) gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE, source);
    else gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, width, height, 0, gl.RGBA, gl.UNSIGNED_BYTE, null);
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
    return texture;
  }

  // A texture of that size that can be drawn on, made once.
  film(name, width, height) {
    const gl = this.gl, old = this.films[name];
    if (old && old.width === width && old.height === height) return old;
    if (old) { gl.deleteTexture(old.texture); gl.deleteFramebuffer(old.buffer); }
    const texture = this.texture(null, width, height), buffer = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, buffer);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    return (this.films[name] = { texture, buffer, width, height });
  }

  draw(name, buffer, rectangle, values) {
    const gl = this.gl, { program, uniforms } = this.programs[name];
    gl.useProgram(program);
    gl.bindFramebuffer(gl.FRAMEBUFFER, buffer);
    gl.viewport(...rectangle);
    let unit = 0;
    for (const [key, { type, place }] of Object.entries(uniforms)) {
      const value = values[key];
      if (type === gl.SAMPLER_2D) {
        gl.activeTexture(gl.TEXTURE0 + unit);
        gl.bindTexture(gl.TEXTURE_2D, value);
        gl.uniform1i(place, unit++);
      } else if (type === gl.FLOAT) gl.uniform1f(place, value);
      else if (type === gl.INT || type === gl.BOOL) gl.uniform1i(place, value);
      else if (type === gl.FLOAT_VEC2) gl.uniform2fv(place, value);
      else if (type === gl.INT_VEC2) gl.uniform2iv(place, value);
      else gl.uniformMatrix3fv(place, true, value);
    }
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  scene(state) {
    const { cols, rows, width, height, low, high } = this.movie, { views, depths } = this.frames[state.frame];
    const steps = rayStrides(this.movie), warp = state.warp && depths !== null;
    return { views, depths: depths || views, grid: [cols, rows], size: [width, height], range: [low, high], steps, warp };
  }

  // Puts the picture of `state` on the film.
  render(state) {
    const { width, height } = this.movie, scene = this.scene(state), whole = [0, 0, width, height];
    const film = this.film("picture", width, height);
    this.shown = film;
    if (state.anaglyph) {
      const [left, right] = eyes(this.movie, state), matrices = { leftEye: DUBOIS_LEFT, rightEye: DUBOIS_RIGHT };
      this.draw("anaglyph", film.buffer, whole, { ...scene, ...matrices, left, right, focus: state.focus });
      return;
    }
    const place = placeOf(this.movie, state);
    if (state.aperture === 0) {
      this.draw("view", film.buffer, whole, { ...scene, place, corner: [0, 0] });
      return;
    }
    const lens = lensOf(this.movie, state, this.maxDensePixels, Math.min(this.largest, 4096));
    const dense = this.dense(state, scene, lens), sharp = this.film("sharp", width, height);
    this.draw("view", sharp.buffer, whole, { ...scene, place, corner: [0, 0] });
    this.draw("refocus", film.buffer, whole, {
      dense: dense.texture, sharp: sharp.texture, denseGrid: [lens.cols, lens.rows], size: [width, height],
      head: place, spacing: 1 / lens.density, aperture: state.aperture, focus: state.focus, direct: lens.direct,
    });
  }

  // All views of the lens beside each other; kept until time or density change.
  dense(state, scene, { density, cols, rows }) {
    const { width, height } = this.movie, film = this.film("dense", cols * width, rows * height);
    const key = [state.frame, density, scene.warp].join();
    if (film.key === key) return film;
    for (let row = 0; row < rows; row++) for (let col = 0; col < cols; col++) {
      const corner = [col * width, row * height];
      this.draw("view", film.buffer, [...corner, width, height], { ...scene, place: [col / density, row / density], corner });
    }
    film.key = key;
    return film;
  }

  pixels() {
    const { buffer, width, height } = this.shown;
    return this.read(buffer, width, height);
  }

  read(buffer, width, height) {
    const gl = this.gl, bytes = new Uint8ClampedArray(width * height * 4);
    gl.bindFramebuffer(gl.FRAMEBUFFER, buffer);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
    return new ImageData(bytes, width, height);
  }

  epi(state, count) {
    const { width } = this.movie, film = this.film("epi", width, count), row = placeOf(this.movie, state)[1];
    this.draw("epi", film.buffer, [0, 0, width, count], { ...this.scene(state), row, line: state.row, count });
    return this.read(film.buffer, width, count);
  }

  // Enlarges the film onto the canvas.
  show(state) {
    const { canvas } = this.gl, { texture, width, height } = this.shown;
    const screen = [canvas.width, canvas.height];
    this.draw("show", null, [0, 0, ...screen], { film: texture, size: [width, height], screen, smoothly: state.smooth });
  }
}
