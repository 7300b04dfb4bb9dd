// Draws signs by hand on the page of examples/browser, with a pointer and with keys, and prints what the model made of them.
//   node pad.mjs ADDRESS STROKES.json SCREENSHOTS
// STROKES.json: { room: [[[x, y], ...], ...] }, each stroke in shares of the room's tile.
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
page.on("console", (message) => ["error", "warn"].includes(message.type()) && problems.push(message.text()));
page.on("pageerror", (error) => problems.push(error.message));
await page.setViewport({ width: 1100, height: 800 });
await page.goto(address);
await page.waitForFunction(() => document.querySelector("#mode").options.length > 0);

const idle = (n) =>
  page.waitForFunction(
    (count) => document.querySelectorAll(".facts").length === count && !document.querySelector("#ask").disabled, {}, n,
  );

async function draw(strokes) {
  const { x, y, width, height } = await (await page.$("canvas.pad")).boundingBox();
  for (const [room, lines] of Object.entries(strokes)) {
    const at = ([across, down]) => [
      x + (((room % 5) + across) * width) / 5, y + ((Math.floor(room / 5) + down) * height) / 2,
    ];
    for (const line of lines) {
      await page.mouse.move(...at(line[0]));
      await page.mouse.down();
      for (const point of line.slice(1)) await page.mouse.move(...at(point), { steps: 4 });
      await page.mouse.up();
    }
  }
}

async function taken(question) {
  await page.evaluate(() => [...document.querySelectorAll("#pad button")][0].click());
  await page.waitForSelector(".picture img");
  const offered = await page.$eval("#question", (field) => field.value);
  await page.$eval("#question", (field, text) => (field.value = text), question);
  await page.click("#ask");
  await idle(1);
  const said = await page.$eval(".said", (one) => one.innerText);
  const picture = await page.$eval(".picture img", (image) => image.src);
  await page.evaluate(() => document.querySelector("#clear").click());
  return { offered, said, picture };
}

const open = () => page.evaluate(() => document.querySelector("#boards").lastElementChild.click());
const ASKED = "Take 1 hop. Which room are you in? Start in room 0";
await open();
await page.waitForSelector("canvas.pad");
await draw(JSON.parse(readFileSync(file, "utf8")));
await page.screenshot({ path: `${folder}/pad.png` });
const barred = await violations(page);
const drawn = await taken(ASKED);

await open();
await page.waitForFunction(() => document.activeElement?.className === "pad"); // the board has the keys
for (const digit of "9876543210") { // room 0 says 9, room 1 says 8, and so on
  await page.keyboard.press(digit);
  await page.keyboard.press("ArrowRight");
}
await page.keyboard.press("ArrowDown");
const told = await page.$eval("#pad [role=status]", (one) => one.innerText);
await page.screenshot({ path: `${folder}/typed.png` });
const typed = await taken(ASKED);
console.log(JSON.stringify({ drawn, typed, told, barred, problems }));
await browser.close();
