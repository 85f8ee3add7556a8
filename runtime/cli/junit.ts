/** What a JUnit report says, counted test by test. */
export interface JunitCounts {
  passed: number;
  failed: number;
  skipped: number;
}

/**
 * Counts the test cases of a JUnit report as `bun test` and `deno test` write them. A report that was
 * cut off counts as far as it goes. Texts inside are escaped, so that the tags can be searched for.
 */
export function countJunit(xml: string): JunitCounts {
  const counts: JunitCounts = { passed: 0, failed: 0, skipped: 0 };
  for (const testCase of xml.split("<testcase").slice(1)) {
    // What follows the end of this case belongs to a suite.
    const body = /^[^>]*\/>/.test(testCase) ? "" : (testCase.split("</testcase>")[0] ?? "");
    if (body.includes("<failure") || body.includes("<error")) counts.failed += 1;
    else if (body.includes("<skipped")) counts.skipped += 1;
    else counts.passed += 1;
  }
  return counts;
}
