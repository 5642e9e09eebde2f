// Plays a video: the file itself where the browser can, otherwise pieces of it as WebM that the program makes.
//
// Times are seconds from the video's first frame. `shown` is the time of the frame that is seen.

import {getBytes, getJson} from "./connection.js";

const PIECE_S = 10; // of video in one piece
const AHEAD = 2; // pieces that are fetched before they are needed
const KEEP_S = 120; // of video around the current time that stays in memory when it is short
const MAX_MARGIN_S = 0.02;
const LANDED_MS = 250;
const TYPE = 'video/webm; codecs="vp8"';

export class Player extends EventTarget {
  constructor(element) {
    super();
    Object.assign(this, {element, video: null, facts: null, shown: 0, offset: 0, loop: null, asked: null,
      frames: 0, pieces: null});
    element.addEventListener("error", () => this.failed());
    element.addEventListener("waiting", () => this.tell("waiting"));
    for (const name of ["playing", "seeked", "canplay"]) element.addEventListener(name, () => this.tell("ready"));
    for (const name of ["play", "pause", "ratechange"]) element.addEventListener(name, () => this.tell("state"));
    element.addEventListener("timeupdate", () => this.onTime());
    element.addEventListener("ended", () => this.loop && this.restart());
    this.watchFrames();
  }

  tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, {detail}));
  }

  get duration() {
    const known = this.facts?.duration_s ?? this.video?.duration_s ?? this.element.duration;
    return Number.isFinite(known) ? known : 0;
  }

  get frame() {
    return this.facts?.fps > 0 ? 1 / this.facts.fps : 0.04;
  }

  // A border lies between two frames, so that rounding never moves a frame across it.
  get margin() {
    return this.facts?.variable ? 0.001 : Math.min(this.frame / 2, MAX_MARGIN_S);
  }

  // Start of a segment that begins with the frame shown; end of one that it ends with.
  get startHere() {
    return rounded(Math.max(0, this.shown - this.margin));
  }

  get endHere() {
    return rounded(this.duration ? Math.min(this.duration, this.shown + this.margin) : this.shown + this.margin);
  }

  // ---- opening

  async open(video) {
    this.close();
    Object.assign(this, {video, facts: null, shown: 0, offset: 0, loop: null, asked: null, frames: 0});
    const opening = (this.opening = new AbortController());
    if (video.problem) return this.tell("problem", video.problem);
    this.tell("waiting");
    if (video.playable) {
      this.native = true;
      this.element.src = `api/video/${video.id}`;
    }
    try {
      const facts = await getJson(`api/video/${video.id}/facts`, {signal: opening.signal});
      if (this.opening !== opening) return;
      this.facts = facts;
      this.tell("facts");
      if (!this.native) this.openPieces();
    } catch (error) {
      if (this.opening === opening && !this.native) this.tell("problem", error.sentence ?? error.message);
    }
  }

  close() {
    this.opening?.abort();
    this.pieces?.close();
    Object.assign(this, {pieces: null, native: false, opening: null});
    this.element.pause();
    this.element.removeAttribute("src");
    this.element.load();
  }

  openPieces() {
    if (!window.MediaSource?.isTypeSupported(TYPE))
      return this.tell("problem", "this browser cannot play WebM: use Chromium, Chrome, Edge or Firefox");
    this.pieces = new Pieces(this.element, this.video.id, this.duration, message => this.tell("problem", message));
  }

  // The browser cannot play the file after all: pieces of it are made.
  failed() {
    if (!this.element.getAttribute("src") || !this.video) return;
    if (!this.native) return this.tell("problem", this.element.error?.message || "the video cannot be shown");
    this.native = false;
    if (this.facts) this.openPieces();
    else this.open({...this.video, playable: false});
  }

  // ---- time

  // The browser tells the time of each frame that it shows. After a jump the time that was asked for counts until that
  // frame is there: frames of jumps before it may still come in between.
  watchFrames() {
    if (!("requestVideoFrameCallback" in HTMLVideoElement.prototype)) return;
    const seen = (_, {mediaTime}) => {
      this.element.requestVideoFrameCallback(seen);
      // A file may begin later than at 0: its first frame is the beginning.
      if (this.native && this.frames === 0 && this.element.currentTime === 0) this.offset = mediaTime;
      this.frames += 1;
      this.lastFrame = Math.max(0, mediaTime - this.offset);
      if (this.asked !== null && Math.abs(this.lastFrame - this.asked) > this.frame * 0.6) return;
      this.show(this.lastFrame);
    };
    this.element.requestVideoFrameCallback(seen);
    this.element.addEventListener("seeked", () => this.landed());
  }

  show(seconds) {
    if (!this.element.seeking) this.asked = null;
    this.shown = seconds;
    this.checkLoop();
    this.tell("time");
  }

  // A jump is over. Where frames last longer than usual, the one shown begins before the time that was asked for.
  landed() {
    const [asked, frames] = [this.asked, this.framesBefore];
    setTimeout(() => {
      if (this.asked === null || this.asked !== asked || this.element.seeking) return;
      this.asked = null;
      if (this.frames > frames) this.show(this.lastFrame);
    }, LANDED_MS);
  }

  onTime() {
    if (this.frames === 0 && this.asked === null) {
      this.shown = Math.max(0, this.element.currentTime - this.offset);
      this.checkLoop();
    }
    this.tell("time");
  }

  checkLoop() {
    if (this.loop && !this.element.paused && this.shown >= this.loop.end_s - 1e-4) this.restart();
  }

  restart() {
    this.seek(this.loop.start_s + this.margin);
    this.play();
  }

  // Goes a little into the frame that begins at this time: where frames meet, rounding could show the one before.
  seek(seconds) {
    const last = this.duration ? Math.max(0, this.duration - this.frame) : seconds;
    this.shown = this.asked = Math.max(0, Math.min(seconds, last));
    this.framesBefore = this.frames;
    this.element.currentTime = this.shown + this.frame / 4 + this.offset;
    this.tell("time");
  }

  step(frames) {
    this.element.pause();
    this.seek(this.shown + frames * this.frame);
  }

  // ---- playing

  get playing() {
    return !this.element.paused;
  }

  play() {
    this.element.play().catch(() => {});
  }

  toggle() {
    if (this.playing) return this.element.pause();
    if (this.loop && (this.shown < this.loop.start_s || this.shown >= this.loop.end_s - this.frame)) this.restart();
    else this.play();
  }

  set speed(factor) {
    this.element.defaultPlaybackRate = this.element.playbackRate = factor;
  }

  get speed() {
    return this.element.playbackRate;
  }
}

const rounded = seconds => Math.round(seconds * 1000) / 1000;

// Makes a Void of the track's DefaultDuration (Matroska's 23E383): with it, a browser drops what follows a frame that
// lasts more than twice as long; without it, a frame lasts until the next one.
function withoutDefaultDuration(content) {
  const bytes = new Uint8Array(content);
  const most = Math.min(bytes.length - 4, 1024); // the head comes first
  for (let at = 0; at < most; at += 1)
    if (bytes[at] === 0x23 && bytes[at + 1] === 0xe3 && bytes[at + 2] === 0x83 && bytes[at + 3] > 0x80) {
      const size = 4 + (bytes[at + 3] & 0x7f);
      bytes.set([0xec, 0x80 | (size - 2)], at);
      break;
    }
  return bytes;
}

// The pieces of one video, put into one stream (Media Source Extensions): seeking fetches the piece that is needed.
class Pieces {
  constructor(element, id, duration, onProblem) {
    Object.assign(this, {element, id, duration, onProblem, have: new Set(), closed: false});
    this.source = new MediaSource();
    this.url = URL.createObjectURL(this.source);
    this.wake = () => this.pump();
    this.source.addEventListener("sourceopen", () => this.begin(), {once: true});
    for (const name of ["seeking", "timeupdate", "waiting"]) element.addEventListener(name, this.wake);
    element.src = this.url;
  }

  close() {
    this.closed = true;
    this.fetching?.abort();
    for (const name of ["seeking", "timeupdate", "waiting"]) this.element.removeEventListener(name, this.wake);
    URL.revokeObjectURL(this.url);
  }

  begin() {
    if (this.closed) return;
    if (this.duration) this.source.duration = this.duration;
    this.buffer = this.source.addSourceBuffer(TYPE);
    this.pump();
  }

  get wanted() {
    const now = Math.floor(this.element.currentTime / PIECE_S);
    const last = this.duration ? Math.max(0, Math.ceil(this.duration / PIECE_S - 1e-6) - 1) : Infinity;
    return Array.from({length: AHEAD + 1}, (_, ahead) => now + ahead).filter(piece => piece <= last);
  }

  // Fetches what is needed next, one piece at a time. A jump elsewhere gives up the piece that is on its way.
  async pump() {
    if (this.closed || !this.buffer) return;
    if (this.fetching) {
      if (!this.wanted.includes(this.fetched)) this.fetching.abort();
      return;
    }
    const piece = this.wanted.find(number => !this.have.has(number));
    if (piece === undefined) return;
    const fetching = (this.fetching = new AbortController());
    this.fetched = piece;
    try {
      const path = `api/proxy/${this.id}?start_s=${piece * PIECE_S}&seconds=${PIECE_S}`;
      const content = await getBytes(path, {signal: fetching.signal});
      if (this.closed) return;
      if (content.byteLength) await this.append(withoutDefaultDuration(content));
      this.have.add(piece);
      this.finish();
    } catch (error) {
      if (this.closed || fetching.signal.aborted) return;
      if (error.lasting === false || error.status === 409) {
        this.have.add(piece);
        if (piece === 0) this.onProblem(error.sentence ?? error.message);
      } else await new Promise(resolve => setTimeout(resolve, 2000));
    } finally {
      this.fetching = null;
      if (!this.closed) this.pump();
    }
  }

  async append(content) {
    await this.idle();
    try {
      this.buffer.appendBuffer(content);
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      await this.forget();
      this.buffer.appendBuffer(content);
    }
    await this.idle();
  }

  idle() {
    if (!this.buffer.updating) return Promise.resolve();
    return new Promise(resolve => this.buffer.addEventListener("updateend", resolve, {once: true}));
  }

  // Drops what is far from the current time.
  async forget() {
    const now = this.element.currentTime;
    for (const [from, to] of [[0, now - KEEP_S], [now + KEEP_S, this.source.duration]]) {
      if (to <= Math.max(from, 0)) continue;
      this.buffer.remove(Math.max(from, 0), to);
      await this.idle();
    }
    const near = piece => Math.abs(piece * PIECE_S - now) < KEEP_S - PIECE_S;
    this.have = new Set([...this.have].filter(near));
  }

  finish() {
    const last = this.duration ? Math.max(0, Math.ceil(this.duration / PIECE_S - 1e-6) - 1) : null;
    if (this.have.has(last) && this.source.readyState === "open" && !this.buffer.updating) this.source.endOfStream();
  }
}
