import { describe, expect, test } from "bun:test";
import { Output, type TextSink } from "../../runtime/cli/output.ts";

class Recorder implements TextSink {
  text = "";
  isTTY: boolean;
  columns = 40;

  constructor(isTTY = false) {
    this.isTTY = isTTY;
  }

  write(text: string): void {
    this.text += text;
  }
}

/** What stands in the last line of a terminal after all that was written. */
function lastLine(text: string): string {
  return text.split("\r\u001b[K").at(-1) ?? "";
}

describe("Output", () => {
  test("print() writes to out and note() to err", () => {
    const out = new Recorder();
    const err = new Recorder();
    const output = new Output({ out, err });
    output.print("result");
    output.note("remark");
    output.emit({ event: "unseen" });
    expect(out.text).toBe("result\n");
    expect(err.text).toBe("remark\n");
  });

  test("with json writes nothing but JSON lines", () => {
    const out = new Recorder();
    const err = new Recorder();
    const output = new Output({ json: true, out, err });
    output.print("result");
    output.note("remark");
    output.emit({ event: "x", value: 1 });
    using progress = output.progress("tasks", 2);
    progress.advance(1, "first");
    progress.finish();
    const events = out.text
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(events).toEqual([
      { event: "x", value: 1 },
      { event: "progress", label: "tasks", done: 0, total: 2 },
      { event: "progress", label: "tasks", done: 1, total: 2, detail: "first" },
      { event: "progress", label: "tasks", done: 1, total: 2, ended: true },
    ]);
    expect(err.text).toBe("");
  });

  test("progress() off a terminal writes the start, each quarter and the summary", () => {
    const err = new Recorder();
    const output = new Output({ out: new Recorder(), err });
    const progress = output.progress("tasks", 100);
    for (let step = 0; step < 100; step += 1) progress.advance();
    progress.finish("100 tasks done");
    expect(err.text).toBe("tasks ...\ntasks: 25/100\ntasks: 50/100\ntasks: 75/100\n100 tasks done\n");
  });

  test("progress() on a terminal redraws one line within its width", () => {
    const err = new Recorder(true);
    const output = new Output({ out: new Recorder(), err });
    const progress = output.progress("tasks", 4);
    progress.advance(1, "a detail that is too long for this terminal");
    expect(lastLine(err.text)).toStartWith("tasks █████░");
    expect(lastLine(err.text).length).toBe(39);
    expect(err.text).not.toContain("\n");
    progress.finish("done");
    expect(lastLine(err.text)).toBe("done\n");
  });

  test("a remark stands above the progress line, which is drawn again", () => {
    const err = new Recorder(true);
    const output = new Output({ out: new Recorder(), err });
    using progress = output.progress("boot");
    progress.describe("kernel");
    output.note("remark");
    expect(err.text).toEndWith("\r\u001b[Kremark\n\r\u001b[Kboot kernel");
  });

  test("progress() on a terminal tells the time while nothing else moves", async () => {
    const { promise, resolve } = Promise.withResolvers<string>();
    const err = {
      isTTY: true,
      columns: 0,
      write: (text: string) => {
        if (/\d s$/.test(text)) resolve(lastLine(text));
      },
    };
    using _ = new Output({ out: new Recorder(), err }).progress("a boot without a word");
    // A guest that boots holds the process up; here nothing does.
    const awake = setInterval(() => undefined, 1000);
    expect(await promise).toMatch(/^a boot without a word \d+ s$/);
    clearInterval(awake);
  });

  test("disposing of a progress takes its line away", () => {
    const err = new Recorder(true);
    const output = new Output({ out: new Recorder(), err });
    {
      using _progress = output.progress("boot");
    }
    expect(lastLine(err.text)).toBe("");
    output.note("after");
    expect(lastLine(err.text)).toBe("after\n");
  });
});
