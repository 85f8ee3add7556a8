import { describe, expect, test } from "bun:test";
import { countJunit } from "../../runtime/cli/junit.ts";

describe("countJunit()", () => {
  test("counts what bun writes: passes, failures, skips, nested suites", () => {
    const xml = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="bun test" tests="4" failures="1" skipped="1" time="0.09">
  <testsuite name="a.test.ts" tests="4" failures="1" skipped="1">
    <testsuite name="a" tests="3" failures="1" skipped="1">
      <testcase name="ok" classname="a" time="0.1" />
      <testcase name="bad" classname="a" time="0.2">
        <failure type="AssertionError" message="a &lt;testcase name=&quot;x&quot;&gt;">text</failure>
      </testcase>
      <testcase name="later" classname="a"><skipped message="TODO" /></testcase>
    </testsuite>
    <testcase name="out" classname="" />
  </testsuite>
</testsuites>`;
    expect(countJunit(xml)).toEqual({ passed: 2, failed: 1, skipped: 1 });
  });

  test("leaves out the suites that deno reports as cases", () => {
    const xml = `<testsuites name="deno test" tests="4" failures="2" errors="0">
<testsuite name="x"><testcase name="suite" classname="x"><failure message="1 step failed">e</failure></testcase>
<testcase name="alone" classname="x"></testcase></testsuite>
<testsuite name="y"><testcase name="suite &gt; one" classname="y"></testcase>
<testcase name="suite &gt; two" classname="y"><failure message="no">e</failure></testcase></testsuite></testsuites>`;
    expect(countJunit(xml)).toEqual({ passed: 2, failed: 1, skipped: 0 });
  });

  test("counts a report that was cut off as far as it goes", () => {
    const xml = `<testsuites><testsuite><testcase name="a" /><testcase name="b"><failure mess`;
    expect(countJunit(xml)).toEqual({ passed: 1, failed: 1, skipped: 0 });
  });

  test("counts nothing in an empty report", () => {
    expect(countJunit("")).toEqual({ passed: 0, failed: 0, skipped: 0 });
  });
});
