import { describe, expect, test } from "bun:test";
import { buildText } from "../../runtime/workers/images.ts";
import { stepText } from "../../runtime/workers/steps.ts";

describe("stepText()", () => {
  test("has words for every step, and none for what a guest prints while it boots", () => {
    const accel = { accel: "tcg", reason: "there is no /dev/kvm", key: "" } as const;
    expect(stepText({ step: "boot", accel })).toBe("booting");
    expect(stepText({ step: "warm-up", argv: ["secret"] })).toBe("warming up");
    expect(stepText({ step: "damaged", reason: "its memory has changed" })).toContain("has changed");
    expect(stepText({ step: "console", line: "[0.1] hello" })).toBeUndefined();
  });
});

describe("buildText()", () => {
  test("names the image, and says how far its build is", () => {
    const build = (progress: Parameters<typeof buildText>[1]) => buildText("base", progress);
    expect(build({ step: "agent", detail: "Compiling" })).toBe("building image base");
    expect(build({ step: "rootfs", fraction: 0.257, detail: "Unpacking" })).toBe(
      "building image base: rootfs 25 % (Unpacking)",
    );
    expect(build({ step: "publish", detail: "Writing" })).toBe("building image base: publish (Writing)");
  });
});
