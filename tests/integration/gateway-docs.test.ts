import { describe, expect, test } from "bun:test";
import { GatewaySandbox } from "../support/gateway-sandbox.ts";

describe("/docs", () => {
  test("loads all that it needs from the gateway", async () => {
    await using gateway = await GatewaySandbox.open();
    const page = await gateway.fetch("/docs");
    expect(page.status).toBe(200);
    expect(page.headers.get("content-type")).toBe("text/html; charset=utf-8");
    const html = await page.text();
    const links = [...html.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, link]) => link!);
    expect(links.length).toBeGreaterThan(4);
    for (const link of links) {
      const { origin, pathname } = new URL(link, `${gateway.url}/docs`);
      expect(origin).toBe(gateway.url);
      const asset = await gateway.fetch(pathname);
      expect([link, asset.status]).toEqual([link, 200]);
      expect((await asset.arrayBuffer()).byteLength).toBeGreaterThan(100);
    }
    const start = await (await gateway.fetch("/docs/start.js")).text();
    for (const text of [html, start]) expect(text).not.toMatch(/\b(https?|wss?):|["'(]\/\//);
    // Absent, it would be a badge of a service elsewhere.
    expect(start).toContain("validatorUrl: null");
    expect(html).not.toMatch(/<script>|<style>|\son\w+=|\sstyle=/);
  });

  test("forbids everything else by its policy", async () => {
    await using gateway = await GatewaySandbox.open();
    for (const path of ["/docs", "/docs/start.js", "/docs/swagger-ui-bundle.js"]) {
      const { headers } = await gateway.fetch(path);
      const policy = headers.get("content-security-policy") ?? "";
      expect(policy).toContain("default-src 'none'");
      expect(policy).toContain("script-src 'self';");
      expect(policy).toContain("frame-ancestors 'none'");
      expect(policy).not.toMatch(/unsafe|https?:|\*/);
      expect(headers.get("x-content-type-options")).toBe("nosniff");
    }
  });

  test("is kept by browsers, and sent again only when it has changed", async () => {
    await using gateway = await GatewaySandbox.open();
    for (const path of ["/docs", "/docs/start.js", "/docs/swagger-ui.css"]) {
      const first = await gateway.fetch(path);
      await first.arrayBuffer();
      expect(first.headers.get("cache-control")).toBe("no-cache");
      const etag = first.headers.get("etag")!;
      const again = await gateway.fetch(path, { headers: { "if-none-match": `"other", W/${etag}` } });
      expect([again.status, await again.text()]).toEqual([304, ""]);
      const changed = await gateway.fetch(path, { headers: { "if-none-match": '"other"' } });
      expect(changed.status).toBe(200);
      await changed.arrayBuffer();
    }
  });

  test("serves those files and no others", async () => {
    await using gateway = await GatewaySandbox.open();
    const others = [
      "/docs/index.html",
      "/docs/package.json",
      "/docs/swagger-ui.js",
      "/docs/..%2fpackage.json",
      "/docs/x",
    ];
    for (const path of others) {
      expect([path, (await gateway.problem(path)).code]).toEqual([path, "ROUTE_NOT_FOUND"]);
    }
    const slash = await gateway.fetch("/docs/", { redirect: "manual" });
    expect([slash.status, slash.headers.get("location")]).toEqual([308, "../docs"]);
  });
});
