// The server's key: asked for when it is needed, kept for this tab, and never shown.

const PLACE = "earmark-key";

export class KeyRing {
  constructor(dialog, field, wrong, cancel) {
    Object.assign(this, { dialog, field, wrong });
    cancel.addEventListener("click", () => dialog.close(""));
  }

  get known() {
    return sessionStorage.getItem(PLACE) !== null;
  }

  /** The key, asked for if it is not known yet; null when the reader gives none. */
  async get() {
    return sessionStorage.getItem(PLACE) ?? (await this.ask(""));
  }

  /** Another key than the one that was refused; null when the reader gives none. */
  again(why) {
    this.forget();
    return this.ask(why);
  }

  forget() {
    sessionStorage.removeItem(PLACE);
  }

  ask(why) {
    this.wrong.textContent = why;
    this.wrong.hidden = !why;
    this.field.value = "";
    this.dialog.returnValue = "";
    if (!this.dialog.open) this.dialog.showModal();
    this.field.focus();
    return new Promise((resolve) => {
      const answered = () => {
        const key = this.dialog.returnValue === "given" ? this.field.value.trim() : "";
        this.field.value = "";
        if (key) sessionStorage.setItem(PLACE, key);
        resolve(key || null);
      };
      this.dialog.addEventListener("close", answered, { once: true });
    });
  }
}
