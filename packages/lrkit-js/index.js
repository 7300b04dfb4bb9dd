export { openBundle } from "./bundle.js";
export { fit, patchify, regionOf } from "./picture.js";
export { Reasoner } from "./reasoner.js";
export { wholeWords } from "./words.js";
