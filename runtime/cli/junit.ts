/** What a JUnit report says, counted test by test. */
export interface JunitCounts {
  passed: number;
  failed: number;
  skipped: number;
}

interface TestCase {
  name: string;
  verdict: keyof JunitCounts;
}

/**
 * Counts the test cases of a JUnit report as `bun test` and `deno test` write them. A report that was
 * cut off counts as far as it goes. Deno reports a suite as a case too, beside `suite > test`: it is
 * left out, being no test; what fails in it alone shows in the runner's exit code.
 */
export function countJunit(xml: string): JunitCounts {
  const cases = readCases(xml);
  const suites = new Set(cases.flatMap(({ name }) => parentsOf(name)));
  const counts: JunitCounts = { passed: 0, failed: 0, skipped: 0 };
  for (const { name, verdict } of cases) {
    if (!suites.has(name)) counts[verdict] += 1;
  }
  return counts;
}

/** Texts inside a report are escaped, so that its tags can be searched for. */
function readCases(xml: string): TestCase[] {
  return xml
    .split("<testcase")
    .slice(1)
    .map((text) => {
      const name = /^[^>]*\sname="([^"]*)"/.exec(text)?.[1] ?? "";
      // What follows the end of this case belongs to a suite.
      const body = /^[^>]*\/>/.test(text) ? "" : (text.split("</testcase>")[0] ?? "");
      return { name, verdict: verdictOf(body) };
    });
}

function verdictOf(body: string): keyof JunitCounts {
  if (body.includes("<failure") || body.includes("<error")) return "failed";
  return body.includes("<skipped") ? "skipped" : "passed";
}

const SEPARATOR = " &gt; ";

/** `a > b > c` lies in `a > b` and in `a`. */
function parentsOf(name: string): string[] {
  const parts = name.split(SEPARATOR);
  return parts.slice(1).map((_, index) => parts.slice(0, index + 1).join(SEPARATOR));
}
