// What axe-core finds on the page as it stands: names that a screen reader lacks, contrast, order of headings, and so on.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** Each violation as "rule: where". */
export async function violations(page) {
  await page.evaluate(AXE); // not as a script of the page, which its policy refuses
  return page.evaluate(async () => {
    const { violations } = await window.axe.run();
    return violations.flatMap(({ id, nodes }) => nodes.map(({ target }) => `${id}: ${target.join(" ")}`));
  });
}
