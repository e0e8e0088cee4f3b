// A headless Chromium, told what to do through a pipe (the DevTools protocol): no package, no port.
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** The first browser that is there, or null. */
export function installed() {
  const names = [process.env.CHROMIUM, "chromium", "chromium-browser", "google-chrome", "chrome"];
  return names.find((name) => name && spawnSync(name, ["--version"]).status === 0) ?? null;
}

/** A browser with one page. What the page says on its console as an error, and what it asks the network for, is kept. */
export class Browser {
  constructor(program) {
    this.home = mkdtempSync(join(tmpdir(), "quantfs-browser-"));
    const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-background-networking", `--user-data-dir=${this.home}`, "--remote-debugging-pipe", "about:blank"];
    this.process = spawn(program, flags, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
    [this.errors, this.asked, this.waiting, this.heard, this.next] = [[], [], new Map(), [], 1];
    let rest = "";
    this.process.stdio[4].on("data", (bytes) => {
      const messages = (rest + bytes).split("\0");
      rest = messages.pop();
      messages.forEach((text) => this.hear(JSON.parse(text)));
    });
  }

  hear({ id, result, error, method, params }) {
    if (id) {
      const { resolve, reject } = this.waiting.get(id);
      this.waiting.delete(id);
      return error ? reject(new Error(error.message)) : resolve(result);
    }
    if (method === "Runtime.exceptionThrown") this.errors.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
    if (method === "Log.entryAdded" && params.entry.level === "error") this.errors.push(params.entry.text);
    if (method === "Network.requestWillBeSent") this.asked.push(params.request.url);
    this.heard.filter((one) => one.method === method).forEach((one) => one.resolve(params));
    this.heard = this.heard.filter((one) => one.method !== method);
  }

  send(method, params = {}) {
    const id = this.next++;
    const text = JSON.stringify({ id, method, params, sessionId: this.session });
    this.process.stdio[3].write(`${text}\0`);
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }

  event(method) {
    return new Promise((resolve) => this.heard.push({ method, resolve }));
  }

  async open(url) {
    if (!this.session) {
      const { targetId } = await this.send("Target.createTarget", { url: "about:blank" });
      this.session = (await this.send("Target.attachToTarget", { targetId, flatten: true })).sessionId;
      for (const domain of ["Page", "Runtime", "Log", "Network"]) await this.send(`${domain}.enable`);
    }
    const loaded = this.event("Page.loadEventFired");
    await this.send("Page.navigate", { url });
    await loaded;
  }

  async look(width, scheme) {
    await this.send("Emulation.setDeviceMetricsOverride", { width, height: 900, deviceScaleFactor: 1, mobile: false });
    await this.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
    // A frame or two, for what is drawn anew at another width.
    await this.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))");
  }

  /** The value of an expression in the page. */
  async run(expression) {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /** A key pressed and let go, as from a keyboard. */
  async press(key, code, text) {
    await this.send("Input.dispatchKeyEvent", { type: "keyDown", key, windowsVirtualKeyCode: code, text });
    await this.send("Input.dispatchKeyEvent", { type: "keyUp", key, windowsVirtualKeyCode: code });
  }

  /** The whole page as PNG. */
  async picture() {
    const { data } = await this.send("Page.captureScreenshot", { captureBeyondViewport: true });
    return Buffer.from(data, "base64");
  }

  async close() {
    const ended = new Promise((resolve) => this.process.on("exit", resolve));
    this.session = undefined;
    await this.send("Browser.close").catch(() => this.process.kill());
    await ended;
    rmSync(this.home, { recursive: true, force: true, maxRetries: 5 });
  }
}
