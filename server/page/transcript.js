// A transcript on the page: committed words that carry their time, tentative ones behind them, and what was measured at the end.

import { clock, median, seconds } from "./figures.js";

const PIECES = /(\s+|[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}])/u; // blanks, and scripts that write none
const NEAR_WORDS = 6; // so far ahead a timed word is looked for among the shown ones

/** One utterance: its text as it comes, and its summary. */
export class Take {
  constructor(parent, about) {
    this.text = "";
    this.words = []; // {text, element, start, end, sent}; start and end only where the server said so
    this.open = null; // the last word while it may still grow
    this.timed = 0; // index of the first word whose time is not known
    this.current = -1;
    this.notes = new Map();
    this.article = make("article", "take");
    this.article.append(make("p", "about", about));
    this.paragraph = make("p", "text");
    this.paragraph.dir = "auto";
    this.paragraph.tabIndex = 0;
    this.paragraph.setAttribute("aria-describedby", "keys");
    this.tail = make("span", "tentative");
    this.paragraph.append(this.tail);
    this.article.append(this.paragraph);
    parent.append(this.article);
  }

  /** Text that stays, with the timed words in it; `sent` is how much audio had been sent by then, in seconds. */
  append(text, words, sent) {
    this.tail.textContent = "";
    this.write(text, sent);
    this.time(words);
  }

  write(text, sent) {
    this.text += text;
    for (const [place, piece] of text.split(PIECES).entries()) {
      if (!piece) continue;
      const alone = place % 2 === 1; // what PIECES matched
      if (alone) this.settle();
      if (/^\s/.test(piece)) {
        this.tail.before(piece);
      } else if (this.open) {
        this.open.text += piece;
        this.open.element.textContent = this.open.text;
      } else {
        const element = make("span", "word growing", piece);
        this.open = { text: piece, element, sent };
        element.dataset.word = this.words.push(this.open) - 1;
        this.tail.before(element);
        if (alone) this.settle();
      }
    }
  }

  /** Text that may stand behind the rest, until something replaces it. */
  tentative(text) {
    this.tail.textContent = text;
  }

  settle() {
    this.open?.element.classList.remove("growing");
    this.open = null;
  }

  time(words) {
    for (const { text, start, end } of words) {
      const near = this.words.slice(this.timed, this.timed + NEAR_WORDS);
      const found = near.findIndex((word) => word.text === text.trim());
      if (found < 0) continue;
      const word = near[found];
      Object.assign(word, { start, end });
      word.element.classList.add("timed");
      this.timed += found + 1;
      if (word === this.open) word.element.classList.remove("growing");
    }
  }

  /** The end: what was shown stands unless the server says otherwise. */
  finish(text, words, sent) {
    this.tail.textContent = "";
    if (text !== undefined && text !== this.text) {
      this.paragraph.replaceChildren(this.tail);
      Object.assign(this, { text: "", words: [], open: null });
      this.write(text, sent);
    }
    if (words?.length) {
      this.timed = 0;
      this.time(words);
    }
    this.settle();
    this.tail.remove();
    if (!this.text.trim()) this.paragraph.append(make("span", "nothing", "No words were heard."));
  }

  /** End of the newest word whose time is known, in seconds of the audio; nothing when there is none. */
  get heardUntil() {
    return this.words[this.timed - 1]?.end;
  }

  /** For each timed word, how much audio had been sent beyond its end when it was shown; half of them waited less. */
  get medianLag() {
    return median(this.words.filter((word) => word.end !== undefined).map((word) => word.sent - word.end));
  }

  /** A remark below the text; a later one of the same kind takes its place. */
  note(sentence, kind = sentence) {
    const old = this.notes.get(kind);
    if (old) old.textContent = sentence;
    else this.article.append(this.notes.set(kind, make("p", "note", sentence)).get(kind));
  }

  /** Figures as pairs of name and value, and buttons that do something with the text. */
  summarise(figures, actions) {
    const row = make("div", "summary");
    const list = make("dl");
    for (const [name, value] of figures) {
      const pair = make("div");
      pair.append(make("dt", "", name), make("dd", "", value));
      list.append(pair);
    }
    const buttons = make("div", "actions");
    for (const [label, act] of this.text.trim() ? actions : []) {
      const button = make("button", "quiet", label);
      button.type = "button";
      button.addEventListener("click", () => act(button));
      buttons.append(button);
    }
    row.append(list, buttons);
    this.article.append(row);
  }

  remove() {
    this.article.remove();
  }
}

/** When the word was said, or failing that when it stood. */
function timeOf({ start, end, sent }) {
  return start === undefined ? `settled after ${seconds(sent)} of audio` : `${clock(start)} – ${clock(end)}`;
}

/** Words tell their time to a pointer, a tap, and the arrow keys. `takes` is a Set of Take. */
export function tellTimes(container, takes, tip, spoken) {
  const takeOf = (element) => [...takes].find((take) => take.paragraph.contains(element));
  let marked = null;

  const show = (word) => {
    marked?.element.classList.remove("current");
    marked = word;
    word.element.classList.add("current");
    tip.textContent = timeOf(word);
    tip.hidden = false;
    const box = word.element.getBoundingClientRect();
    const left = box.left + box.width / 2 - tip.offsetWidth / 2;
    tip.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 8)) + scrollX}px`;
    const above = box.top - tip.offsetHeight - 6;
    tip.style.top = `${(above < 4 ? box.bottom + 6 : above) + scrollY}px`;
  };
  const hide = () => {
    marked?.element.classList.remove("current");
    marked = null;
    tip.hidden = true;
  };
  const pointed = (event) => {
    const element = event.target.closest?.(".word");
    const take = element && takeOf(element);
    return take ? take.words[Number(element.dataset.word)] : null;
  };

  container.addEventListener("pointerover", (event) => {
    const word = pointed(event);
    if (word) show(word);
    else if (event.pointerType === "mouse") hide();
  });
  container.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
  document.addEventListener("pointerdown", (event) => {
    const word = container.contains(event.target) && pointed(event);
    if (word) show(word);
    else hide();
  });
  container.addEventListener("keydown", (event) => {
    const take = takeOf(event.target);
    if (!take || take.words.length === 0) return;
    const last = take.words.length - 1;
    const places = { ArrowRight: take.current + 1, ArrowLeft: take.current - 1, Home: 0, End: last };
    if (!(event.key in places) || event.ctrlKey || event.metaKey || event.altKey) {
      if (event.key === "Escape") hide();
      return;
    }
    event.preventDefault();
    take.current = Math.max(0, Math.min(last, places[event.key]));
    const word = take.words[take.current];
    word.element.scrollIntoView({ block: "nearest" });
    show(word);
    spoken.textContent = `${word.text}, ${timeOf(word)}`;
  });
  container.addEventListener("focusout", hide);
}

/** Committed text for those who listen to the page: by sentences or so, never word by word. */
export class Announcer {
  constructor(region) {
    this.region = region;
    this.waiting = "";
    this.timer = 0;
  }

  add(text) {
    this.waiting += text;
    if (!this.waiting.trim()) return;
    if (/[.?!]["')\]]?\s*$/.test(this.waiting)) this.say();
    else if (!this.timer) this.timer = setTimeout(() => this.say(), 4000);
  }

  say() {
    clearTimeout(this.timer);
    this.timer = 0;
    if (!this.waiting.trim()) return;
    this.region.append(make("p", "", this.waiting.trim()));
    this.waiting = "";
    while (this.region.children.length > 5) this.region.firstElementChild.remove();
  }
}

export function make(tag, names = "", text = "") {
  const element = document.createElement(tag);
  if (names) element.className = names;
  if (text) element.textContent = text;
  return element;
}
