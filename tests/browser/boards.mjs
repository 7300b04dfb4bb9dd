// Asks the page of examples/browser about many pictures in headless Chromium, and prints what it showed as JSON.
//   node boards.mjs ADDRESS QUESTIONS.json SCREENSHOTS
// QUESTIONS.json: [{ picture, question, mode }]. The last part takes the network away and loads the page once more.
import { readFileSync } from "node:fs";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";
import { violations } from "./accessible.mjs";

const [address, file, folder] = process.argv.slice(2);
const browser = await puppeteer.launch({
  args: [...chromium.args, "--no-sandbox"], executablePath: await chromium.executablePath(), headless: "shell",
});
const page = await browser.newPage();
const problems = [];
const elsewhere = [];
page.on("console", (message) => ["error", "warn"].includes(message.type()) && problems.push(message.text()));
page.on("pageerror", (error) => problems.push(error.message));
page.on("request", (request) => {
  if (!request.url().startsWith(address) && !/^(data|blob):/.test(request.url())) elsewhere.push(request.url());
});
await page.setViewport({ width: 1100, height: 800 });
await page.emulateMediaFeatures([{ name: "prefers-reduced-motion", value: "reduce" }]);
const ready = () => page.waitForFunction(() => document.querySelector("#mode").options.length > 0);
const idle = () => page.waitForFunction(() => document.querySelector(".facts") && !document.querySelector("#ask").disabled);

// How long the page did not react while the model was loaded and asked: it has to stay free.
await page.evaluateOnNewDocument(() => {
  window.longest = 0;
  new PerformanceObserver((found) => {
    for (const entry of found.getEntries()) window.longest = Math.max(window.longest, entry.duration);
  }).observe({ type: "longtask", buffered: true });
});
await page.goto(address);
await ready();
await page.evaluate(() => {
  window.live = []; // steps that were told before their answer
  const facts = () => document.querySelector(".facts")?.textContent ?? "";
  const see = () => /: step \d+$/.test(facts()) && window.live.at(-1) !== facts() && window.live.push(facts());
  new MutationObserver(see).observe(document.querySelector("#answers"), { subtree: true, childList: true });
});

async function asked({ picture, question, mode }) {
  await page.evaluate(() => document.querySelector("#clear").click());
  await (await page.$("#files")).uploadFile(picture);
  await page.waitForSelector(".picture img");
  await page.$eval("#question", (field, text) => (field.value = text), question);
  await page.select("#mode", mode);
  await page.evaluate(() => (window.live = []));
  await page.click("#ask");
  await idle();
  const live = await page.evaluate(() => window.live.length);
  const steps = [];
  for (const button of await page.$$('[role="group"]:not(#boards) button')) {
    await button.click();
    steps.push(
      await page.$$eval(".region", (found) =>
        found.map((one) => ["left", "top", "width", "height"].map((side) => parseFloat(one.style[side]))),
      ),
    );
  }
  const [said, facts] = await Promise.all([".said", ".facts"].map((one) => page.$eval(one, (found) => found.innerText)));
  return { said, facts, steps, live };
}

const found = [];
for (const one of JSON.parse(readFileSync(file, "utf8"))) found.push(await asked(one));
const longest = await page.evaluate(() => window.longest);

await page.evaluate(() => document.querySelector("#clear").click());
const barred = await violations(page);
await page.screenshot({ path: `${folder}/start.png` });
await page.evaluate(() => navigator.serviceWorker.ready);
await page.setOfflineMode(true);
await page.reload();
await ready();
await page.click(".board:nth-child(4)");
await page.waitForSelector(".picture img");
await page.click("#compare");
await page.click("#ask");
await page.waitForFunction(() => document.querySelectorAll(".facts").length === 2 && !document.querySelector("#ask").disabled);
const offline = await page.$eval(".said", (one) => one.innerText);
await page.screenshot({ path: `${folder}/offline.png` });
console.log(JSON.stringify({ found, longest, offline, elsewhere, barred, problems }));
await browser.close();
