// Asks an lrkit bundle a question about a PNG, with ONNX Runtime and nothing of Python.
//
//     cmake -B build -DONNXRUNTIME_ROOT=onnxruntime-linux-x64-1.23.2 && cmake --build build
//     build/ask BUNDLE rooms.png "Take 4 hops. Which room are you in? Start in room 3" [latent|cot|direct]
//
// The answer goes to standard output, what it took to standard error: the same as `lrkit ask` prints.

#include <cstdio>
#include <exception>

#include "lrkit.hpp"

#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_PNG  // decoders of JPEG differ in the last bit, and answers may with them
#include <stb_image.h>

namespace {

lrkit::Picture read_png(const std::string& path) {
  int width = 0, height = 0, channels = 0;
  unsigned char* rgba = stbi_load(path.c_str(), &width, &height, &channels, 4);
  if (!rgba) throw std::runtime_error(path + " cannot be read as a PNG: " + stbi_failure_reason());
  lrkit::Picture picture{width, height, {}};
  bool opaque = true;
  for (size_t i = 0; i < 4 * size_t(width) * size_t(height); i += 4) {
    picture.rgb.insert(picture.rgb.end(), {rgba[i], rgba[i + 1], rgba[i + 2]});
    opaque = opaque && rgba[i + 3] == 255;
  }
  stbi_image_free(rgba);
  if (!opaque) throw std::runtime_error("the picture is transparent in places; lay it on white first");
  return picture;
}

void ask(const std::vector<std::string>& words) {
  if (words.size() < 3 || words.size() > 4 || words[2].empty())
    throw std::runtime_error("usage: ask BUNDLE PICTURE.png QUESTION [latent|cot|direct]");
  lrkit::Reasoner reasoner(words[0]);
  const lrkit::Picture picture = read_png(words[1]);
  const lrkit::Answer answer = reasoner.ask(&picture, words[2], words.size() > 3 ? words[3] : "latent");
  std::printf("%s\n", answer.text.c_str());
  std::fprintf(stderr, "%lld autoregressive steps (%lld latent, %lld tokens spoken), %.1f ms\n",
               static_cast<long long>(answer.ar_steps), static_cast<long long>(answer.latent_steps),
               static_cast<long long>(answer.spoken_tokens), answer.milliseconds);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    ask({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
