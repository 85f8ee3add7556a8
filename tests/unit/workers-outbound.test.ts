import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import { AllowList } from "../../runtime/workers/js/allow-list.ts";
import { outboundGuard, outboundOf } from "../../runtime/workers/js/outbound.ts";
import { ReplayBody } from "../../runtime/workers/js/replay.ts";
import { rejection } from "../support/agent-peer.ts";
import { OutboundSite } from "../support/outbound-site.ts";

describe("AllowList", () => {
  const list = new AllowList([
    "api.example.com:443",
    "*.wild.test:8080",
    "Mixed.Test",
    "10.0.0.1:81",
    "[2001:DB8::1]:9000",
    "bücher.test:443",
  ]);

  test.each([
    "https://api.example.com/x",
    "https://API.example.com./x",
    "http://api.example.com:443/",
    "http://a.wild.test:8080/",
    "https://a.b.wild.test:8080/",
    "http://mixed.test/",
    "https://mixed.test/",
    "http://10.0.0.1:81/",
    "http://0x0a000001:81/",
    "http://[2001:db8:0::1]:9000/",
    "https://b%C3%BCcher.test/",
    "https://xn--bcher-kva.test/",
  ])("allows %s", (url) => expect(list.allows(new URL(url))).toBe(true));

  test.each([
    "http://api.example.com/",
    "https://api.example.com:8443/",
    "https://x.api.example.com/",
    "https://api.example.com.evil.test/",
    "https://evilapi.example.com/",
    "http://wild.test:8080/",
    "http://evilwild.test:8080/",
    "http://a.wild.test/",
    "http://mixed.test:443/",
    "http://10.0.0.1/",
    "http://[2001:db8::2]:9000/",
  ])("does not allow %s", (url) => expect(list.allows(new URL(url))).toBe(false));

  test.each([
    "",
    "*",
    "*:443",
    "*.",
    "*.*.test:443",
    "a.*:443",
    "http://a",
    "a/b",
    "a:b",
    "a:0",
    "a:65536",
    "a b",
    "u@a:1",
    "[::1",
    "::1:80",
    "*.10.0.0.1:80",
    "*.[::1]:80",
    "a:80:90",
    "a?b",
    "a#b:1",
  ])("is not made with the entry %p", (entry) => {
    let error: unknown;
    try {
      new AllowList([entry]);
    } catch (caught) {
      error = caught;
    }
    expect(error).toBeInstanceOf(FlurryError);
    expect((error as FlurryError).code).toBe("BAD_ARGUMENT");
  });
});

/** A body whose chunks come when they are pushed. */
function pushed() {
  let controller!: ReadableStreamDefaultController<Uint8Array>;
  const stream = new ReadableStream<Uint8Array>(
    {
      start(given) {
        controller = given;
      },
    },
    { highWaterMark: 0 },
  );
  return {
    body: new ReplayBody(stream),
    push: (bytes: number) => controller.enqueue(new Uint8Array(bytes)),
    controller,
  };
}

async function sizes(chunks: AsyncIterable<Uint8Array>): Promise<number[]> {
  const all: number[] = [];
  for await (const chunk of chunks) all.push(chunk.length);
  return all;
}

describe("ReplayBody", () => {
  test("gives the same again while little of it was read", async () => {
    const { body, push, controller } = pushed();
    const first = body.chunks();
    push(10);
    expect((await first.next()).value).toHaveLength(10);
    const stale = first.next(); // waits while the second one begins
    const second = sizes(body.chunks());
    push(20);
    push(30);
    controller.close();
    expect(await second).toEqual([10, 20, 30]);
    expect(await stale).toMatchObject({ done: true });
    expect(body.isWhole).toBe(true);
  });

  test("holds no more than it may, and says that it is not whole any more", async () => {
    const { body, push, controller } = pushed();
    const reading = sizes(body.chunks());
    for (let i = 0; i < 8; i++) push(10_000);
    controller.close();
    expect(await reading).toEqual(Array.from({ length: 8 }, () => 10_000));
    expect(body.isWhole).toBe(false);
  });

  test("passes on the source's error, and its own cancel", async () => {
    const { body, controller } = pushed();
    const reading = rejection(sizes(body.chunks()));
    controller.error(new Error("gone"));
    expect((await reading).message).toBe("gone");
    const other = pushed();
    const left = sizes(other.body.chunks());
    other.body.cancel(new Error("no more"));
    expect(await left).toEqual([]);
  });
});

describe("outboundOf()", () => {
  const request = {
    requestId: undefined,
    method: "GET",
    headers: [],
    redirect: "follow",
    body: undefined,
  } as const;
  const never = new AbortController().signal;

  test("tries the next address when one refuses the connection, with the body from its beginning", async () => {
    await using site = await OutboundSite.open();
    const closed = { address: "127.0.0.2", family: 4 };
    const resolve = async () => [closed, { address: "127.0.0.1", family: 4 }];
    const handler = outboundOf({
      allow: [`a.test:${site.port}`],
      guard: outboundGuard({ allow: ["a.test"], resolve }),
    });
    const body = new Blob(["a body"]).stream();
    const url = `http://a.test:${site.port}/echo`;
    const answer = await handler({ ...request, method: "POST", url, body }, never);
    const parts: Uint8Array[] = [];
    for await (const part of answer.body as AsyncIterable<Uint8Array>) parts.push(part);
    expect(JSON.parse(Buffer.concat(parts).toString())).toMatchObject({ text: "a body", method: "POST" });
    expect(site.requests).toBe(1);
  });

  test("refuses methods that are no requests, and URLs that are none", async () => {
    const handler = outboundOf({ allow: ["a.test"], guard: outboundGuard({ resolve: async () => [] }) });
    for (const [method, url, code] of [
      ["CONNECT", "http://a.test/", "OUTBOUND_FAILED"],
      ["trace", "http://a.test/", "OUTBOUND_FAILED"],
      ["GET", "nowhere", "OUTBOUND_FAILED"],
      ["GET", "ftp://a.test/", "OUTBOUND_FORBIDDEN"],
      ["GET", "http://u:p@a.test/", "OUTBOUND_FORBIDDEN"],
      ["GET", "http://a.test/", "OUTBOUND_FORBIDDEN"],
    ] as const) {
      expect(await rejection(handler({ ...request, method, url }, never))).toMatchObject({ code });
    }
  });

  test("stops with its signal also while a name is looked up", async () => {
    const guard = outboundGuard({ resolve: () => new Promise(() => undefined) });
    const handler = outboundOf({ allow: ["a.test"], guard });
    const control = new AbortController();
    const waiting = rejection(handler({ ...request, url: "http://a.test/" }, control.signal));
    control.abort(new Error("enough"));
    expect((await waiting).message).toBe("enough");
  });
});
