// A plot along a sequence: it scrolls, zooms, and reads out one position, by pointer and by keyboard.

const GUTTER = 46;
const AXIS = 22;
const WIDEST_BASE = 26;

/** An element with properties, attributes (under `attr`) and children. */
export function element(tag, { attr = {}, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attr)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/**
 * A strip of `length` positions, `height` pixels high without its axis.
 * label: its name for screen readers; describe(position): what stands there, in words;
 * paint(g, view): draws the positions view.from to view.to, each view.px wide, position p at view.x(p).
 */
export class Strip {
  constructor({ label, length, height, describe, paint }) {
    Object.assign(this, { length, height, describe, paint, zoom: 1, cursor: 0, shown: false, waiting: false });
    this.canvas = element("canvas", { attr: { "aria-hidden": "true" } });
    this.spacer = element("div", { className: "spacer" }, this.canvas);
    this.scroller = element("div", {
      className: "scroller",
      tabIndex: 0,
      attr: { role: "slider", "aria-label": label, "aria-valuemin": 1, "aria-valuemax": length, "aria-orientation": "horizontal" },
    }, this.spacer);
    // the slider's own text tells it to screen readers
    this.readout = element("p", { className: "readout", attr: { "aria-hidden": "true" } });
    this.smaller = this.#button("−", "Zoom out", () => this.#zoomTo(this.zoom / 2));
    this.larger = this.#button("+", "Zoom in", () => this.#zoomTo(this.zoom * 2));
    const zooms = element("div", { className: "zoom", attr: { role: "group", "aria-label": `Zoom of ${label}` } },
      this.smaller, this.larger);
    this.root = element("div", { className: "strip" },
      element("div", { className: "strip-head" }, this.readout, zooms), this.scroller);
    this.#listen();
    this.#tell();
  }

  /** Draw it at the next frame. */
  refresh = () => {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.#draw();
    });
  };

  #button(text, label, act) {
    return element("button", { type: "button", textContent: text, title: label, onclick: act, attr: { "aria-label": label } });
  }

  #listen() {
    new ResizeObserver(this.refresh).observe(this.scroller);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", this.refresh);
    this.scroller.addEventListener("scroll", this.refresh, { passive: true });
    for (const kind of ["pointermove", "pointerdown"]) {
      this.scroller.addEventListener(kind, (event) => {
        const x = event.clientX - this.scroller.getBoundingClientRect().left + this.scroller.scrollLeft - GUTTER;
        if (x >= 0) this.#moveTo(Math.floor(x / this.px));
      });
    }
    this.scroller.addEventListener("focus", () => { this.shown = true; this.refresh(); });
    this.scroller.addEventListener("keydown", (event) => this.#key(event));
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.round((this.room / this.px) * 0.8));
    const step = event.shiftKey ? 10 : 1;
    const to = {
      ArrowLeft: this.cursor - step, ArrowDown: this.cursor - step,
      ArrowRight: this.cursor + step, ArrowUp: this.cursor + step,
      PageDown: this.cursor + page, PageUp: this.cursor - page,
      Home: 0, End: this.length - 1,
    }[event.key];
    if (to !== undefined) {
      this.#moveTo(to);
      this.#bringIntoView();
    } else if (event.key === "+" || event.key === "=") this.#zoomTo(this.zoom * 2);
    else if (event.key === "-") this.#zoomTo(this.zoom / 2);
    else return;
    event.preventDefault();
  }

  get room() {
    return Math.max(1, this.scroller.clientWidth - GUTTER - 2);
  }

  /** Pixels of one position. */
  get px() {
    return Math.min(WIDEST_BASE, (this.room / this.length) * this.zoom);
  }

  #zoomTo(zoom) {
    const most = Math.max(1, WIDEST_BASE / (this.room / this.length));
    const before = this.cursor * this.px - this.scroller.scrollLeft;
    const inside = before >= 0 && before <= this.room;
    this.zoom = Math.min(Math.max(1, zoom), 2 ** Math.ceil(Math.log2(most)));
    this.#layOut();
    this.scroller.scrollLeft = this.cursor * this.px - (inside ? before : this.room / 2);
    this.refresh();
  }

  #bringIntoView() {
    const x = this.cursor * this.px, { scrollLeft } = this.scroller;
    if (x < scrollLeft || x + this.px > scrollLeft + this.room) this.scroller.scrollLeft = x - this.room / 2;
  }

  #moveTo(position) {
    this.cursor = Math.min(Math.max(0, position), this.length - 1);
    this.shown = true;
    this.#tell();
    this.refresh();
  }

  #tell() {
    const text = this.describe(this.cursor);
    this.readout.textContent = this.shown ? text : "Point at a position, or use the arrow keys";
    this.scroller.setAttribute("aria-valuenow", this.cursor + 1);
    this.scroller.setAttribute("aria-valuetext", text);
  }

  #layOut() {
    this.spacer.style.width = `${Math.floor(GUTTER + this.length * this.px)}px`;
    this.smaller.disabled = this.zoom <= 1;
    this.larger.disabled = this.px >= WIDEST_BASE;
  }

  #draw() {
    const width = this.scroller.clientWidth, height = this.height + AXIS, scale = devicePixelRatio || 1;
    if (!width) return;
    this.#layOut();
    Object.assign(this.canvas, { width: width * scale, height: height * scale });
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
    const g = this.canvas.getContext("2d"), { px } = this, left = this.scroller.scrollLeft;
    g.scale(scale, scale);
    const style = getComputedStyle(this.scroller);
    const view = {
      px, width, height: this.height, gutter: GUTTER,
      from: Math.max(0, Math.floor(left / px)),
      to: Math.min(this.length, Math.ceil((left + width - GUTTER) / px)),
      x: (position) => GUTTER + position * px - left,
      colour: (name) => style.getPropertyValue(`--${name}`).trim(),
      font: style.fontFamily,
    };
    view.end = Math.min(width, view.x(this.length));
    g.save();
    g.beginPath();
    g.rect(GUTTER, 0, width - GUTTER, height);
    g.clip();
    this.paint(g, view);
    this.#drawPositions(g, view);
    if (this.shown) {
      g.strokeStyle = view.colour("ink");
      g.strokeRect(view.x(this.cursor) - 0.5, 0.5, Math.max(px, 2) + 1, this.height - 1);
    }
    g.restore();
    g.font = `11px ${view.font}`;
    g.fillStyle = view.colour("quiet");
    g.fillText("bp", GUTTER - 22, this.height + 16);
    this.paint(g, view, true);
  }

  /** The axis in bp; the first base is 1. */
  #drawPositions(g, view) {
    let step = 1;
    for (let k = 0; step * view.px < 64; k += 1) step = [1, 2, 5][k % 3] * 10 ** Math.floor(k / 3);
    g.font = `11px ${view.font}`;
    g.textAlign = "center";
    g.fillStyle = g.strokeStyle = view.colour("quiet");
    for (let p = Math.ceil((view.from + 1) / step) * step || 1; p <= view.to; p += step) {
      const x = view.x(p - 0.5), text = p.toLocaleString("en"), half = g.measureText(text).width / 2;
      g.fillRect(x - 0.5, this.height, 1, 4);
      // cut in half it would say another number
      if (x - half >= GUTTER && x <= view.width) g.fillText(text, Math.min(x, view.width - half), this.height + 16);
    }
    g.textAlign = "left";
  }
}
