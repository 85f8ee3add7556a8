/**
 * Repairs a gap of Bun 1.4: `new Request(url, { body: "text" })` has no Content-Type, which the Fetch standard
 * ("extract a body") gives it at once.
 */
export function shimRequest(): void {
  const native = globalThis.Request;
  globalThis.Request = new Proxy(native, {
    construct(target, args, newTarget) {
      const self = newTarget === globalThis.Request ? target : newTarget;
      const request: Request = Reflect.construct(target, args, self);
      const init: RequestInit | undefined = args[1];
      if (typeof init?.body === "string" && !request.headers.has("content-type")) {
        request.headers.set("content-type", "text/plain;charset=UTF-8");
      }
      return request;
    },
  });
}
