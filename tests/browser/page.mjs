// Uses the page of `lrkit serve` as a visitor does, in headless Chromium, and prints what it showed as JSON.
//   node page.mjs ADDRESS PICTURE QUESTION SCREENSHOTS
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";
import { violations } from "./accessible.mjs";

const [address, picture, question, folder] = process.argv.slice(2);
const browser = await puppeteer.launch({
  args: [...chromium.args, "--no-sandbox"], executablePath: await chromium.executablePath(), headless: "shell",
});
const page = await browser.newPage();
const problems = [];
const elsewhere = [];
page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
page.on("pageerror", (error) => problems.push(error.message));
page.on("request", (request) => {
  if (!request.url().startsWith(address) && !request.url().startsWith("data:")) elsewhere.push(request.url());
});
await page.emulateMediaFeatures([{ name: "prefers-reduced-motion", value: "reduce" }]);
await page.setViewport({ width: 1100, height: 800 });
await page.goto(address);
await page.waitForFunction(() => document.querySelector("#mode").options.length > 0);

const done = (answers) =>
  page.waitForFunction(
    (n) => document.querySelectorAll(".facts").length === n && !document.querySelector("#ask").disabled, {}, answers,
  );
const texts = (selector) => page.$$eval(selector, (found) => found.map((one) => one.innerText));

await (await page.$("#files")).uploadFile(picture);
await page.waitForSelector(".picture img");
await page.focus("#question"); // from here on by keyboard alone
await page.keyboard.type(question);
await page.focus("#compare");
await page.keyboard.press("Space");
await page.focus("#ask");
await page.keyboard.press("Enter");
await done(2);
const steps = [];
for (const button of await page.$$('[role="group"]:not(#boards) button')) {
  await button.focus();
  await page.keyboard.press("Enter");
  const marks = await page.$$eval(".region", (found) =>
    found.map((one) => ["left", "top", "width", "height"].map((side) => parseFloat(one.style[side]))),
  );
  steps.push(marks);
}
const said = await texts(".said");
const facts = await texts(".facts");
const middle = (await page.$$('[role="group"]:not(#boards) button'))[1];
await middle?.click(); // a step in the middle, for the screenshot
const barred = await violations(page);
await page.screenshot({ path: `${folder}/desk.png` });
await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
await page.setViewport({ width: 390, height: 844 });
barred.push(...(await violations(page)));
const wide = await page.evaluate(() => document.documentElement.scrollWidth);
await page.screenshot({ path: `${folder}/phone.png` });

await page.click("#compare");
await page.type("#question", "<b>unheard</b>");
await page.click("#ask");
await done(3);
const failed = await texts(".failed");
console.log(JSON.stringify({ title: await texts("h1"), said, facts, steps, wide, failed, elsewhere, barred, problems }));
await browser.close();
