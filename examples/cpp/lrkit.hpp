// Asks a bundle of `lrkit export` in C++17. One run of the bundle's program does all the work: reading, latent steps,
// replay, words. What is left for this header is to cut the picture, to number positions and to look words up.
// What the program reads and writes is said in bundle.json, programs.*.spec.
//
// For bundles of the family qwen2_vl in the form `program`, with one picture or none a question. Copy it and change it.

#pragma once

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "words.hpp"

namespace lrkit {

/// RGBA bytes, row by row.
struct Picture {
  int64_t width = 0, height = 0;
  std::vector<uint8_t> data;
};

struct Answer {
  std::string text;
  int64_t latent_steps = 0, spoken_tokens = 0, ar_steps = 0;
  double milliseconds = 0;
};

/// A picture as the program reads it, and the size of its grid of visual tokens.
struct Patches {
  std::vector<uint8_t> values;
  Ids positions;
  int64_t count = 0, rows = 0, columns = 0;
};

/// The size at which the model reads a picture: sides that are multiples of a visual token's, within the limits.
inline std::array<int64_t, 2> fit(int64_t width, int64_t height, const Json& image) {
  const double side = image.at("patch_size").get<double>() * image.at("merge_size").get<double>();
  const double least = image.at("size").at("shortest_edge"), most = image.at("size").at("longest_edge");
  const auto sized = [&](double scale, double (*round)(double)) {
    const auto edge = [&](int64_t pixels) { return int64_t(std::max(side, round(pixels * scale / side) * side)); };
    return std::array{edge(width), edge(height)};
  };
  // nearbyint: a half goes to the even neighbour, as in Python.
  const auto fitted = sized(1, [](double value) { return std::nearbyint(value); });
  const double area = double(width) * double(height), read = double(fitted[0]) * double(fitted[1]);
  if (read > most) return sized(std::sqrt(most / area), [](double value) { return std::floor(value); });
  if (read < least) return sized(std::sqrt(least / area), [](double value) { return std::ceil(value); });
  return fitted;
}

/// Patches in the order of the spatial merge: squares of merge x merge patches, row by row; each holds the bytes of the
/// picture by channel, row, column. Throws where the picture has another size than `fit` says, or is transparent.
inline Patches patchify(const Picture& picture, const Json& image) {
  const int64_t patch = image.at("patch_size"), merge = image.at("merge_size");
  const auto [wide, high] = fit(picture.width, picture.height, image);
  const auto size = [](int64_t w, int64_t h) { return std::to_string(w) + " x " + std::to_string(h); };
  if (wide != picture.width || high != picture.height)
    throw std::runtime_error("the picture has " + size(picture.width, picture.height) +
                             " pixels, and the model reads it at " + size(wide, high) + "; scale it first");
  Patches cut;
  cut.rows = high / patch / merge;
  cut.columns = wide / patch / merge;
  cut.count = cut.rows * cut.columns * merge * merge;
  for (int64_t i = 0; i < cut.count; ++i) {
    const int64_t square = i / (merge * merge), inside = i % (merge * merge);
    const int64_t row = square / cut.columns * merge + inside / merge;
    const int64_t column = square % cut.columns * merge + inside % merge;
    cut.positions.insert(cut.positions.end(), {row, column});
    for (int64_t channel = 0; channel < 3; ++channel)
      for (int64_t y = row * patch; y < (row + 1) * patch; ++y)
        for (int64_t x = column * patch; x < (column + 1) * patch; ++x) {
          const uint8_t* pixel = &picture.data[4 * (y * wide + x)];
          if (pixel[3] != 255) throw std::runtime_error("the picture is transparent in places; lay it on white first");
          cut.values.push_back(pixel[channel]);
        }
  }
  return cut;
}

/// Text counts on in all three sections. Visual tokens share the first and spread over rows and columns in the others,
/// unless the checkpoint says that they count on like text.
inline Ids position_ids(const Ids& ids, int64_t image_id, const Patches& cut, const Json& image) {
  const int64_t size = int64_t(ids.size()), visual = cut.rows * cut.columns;
  const int64_t start = std::find(ids.begin(), ids.end(), image_id) - ids.begin();
  const bool grid = visual > 0 && image.value("visual_positions", "grid") == "grid";
  Ids sections(3 * ids.size());
  for (int64_t section = 0; section < 3; ++section)
    for (int64_t i = 0; i < size; ++i) {
      int64_t place = i;
      if (grid && i >= start + visual)
        place = i - visual + std::max(cut.rows, cut.columns);
      else if (grid && i >= start)
        place = start + std::array{int64_t(0), (i - start) / cut.columns, (i - start) % cut.columns}[size_t(section)];
      sections[size_t(section * size + i)] = place;
    }
  return sections;
}

class Reasoner {
 public:
  /// Opens a bundle. Throws where it is none, or one that this header cannot read.
  explicit Reasoner(std::filesystem::path folder, Tokenizer tokenizer = {}) : folder_(std::move(folder)) {
    manifest_ = parsed("bundle.json");
    if (manifest_.at("schema_version") != 3 || manifest_.at("family") != "qwen2_vl")
      throw std::runtime_error("the bundle has schema " + manifest_.at("schema_version").dump() + " and the family " +
                               manifest_.at("family").dump() + "; lrkit.hpp reads 3 and qwen2_vl");
    image_ = parsed(checked("preprocessor_config.json"));
    prompt_ = parsed(checked("prompt.json"));
    tokenizer_ = tokenizer.encode ? std::move(tokenizer) : whole_words(parsed(checked("tokenizer.json")));
  }

  /// Answers a question about one picture, or about none (nullptr). `mode` is latent, cot or direct.
  Answer ask(const Picture* picture, const std::string& question, const std::string& mode = "latent") {
    const Json& program = program_of(mode);
    Ort::Session& session = opened(program);
    const auto started = std::chrono::steady_clock::now();
    const int64_t patch = image_.at("patch_size"), merge = image_.at("merge_size");
    const int64_t image_id = manifest_.at("tokens").at("image");
    Patches cut = picture ? patchify(*picture, image_) : Patches{};
    Ids ids = prompt_ids(cut, question, mode, image_id);
    Ids places = position_ids(ids, image_id, cut, image_);
    if (!picture) {  // the program reads one square of zeros
      cut.count = merge * merge;
      cut.values.resize(size_t(3 * cut.count * patch * patch));
      cut.positions.resize(size_t(2 * cut.count));
    }
    const Json &limits = manifest_.at("limits"), &think = program.at("settings").at("think");
    within("the picture has", cut.count, "patches", limits.at("max_patches"));
    within("the prompt has", int64_t(ids.size()), "tokens", limits.at("max_prompt_tokens"));
    Ids pictures(size_t(cut.count), 0);
    std::array<bool, 1> thinks{mode == "latent"}, fixed{think.at("halting") == "fixed"};
    const int64_t trained = think.at("max_latent_steps"), room = limits.at("max_latent_steps");
    std::array<int64_t, 1> steps{std::min(trained, room)}, words{limits.at("max_new_tokens").get<int64_t>()};

    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto tensor = [&](auto& values, std::vector<int64_t> shape) {
      return Ort::Value::CreateTensor(memory, values.data(), values.size(), shape.data(), shape.size());
    };
    const int64_t size = int64_t(ids.size());
    const std::array names{"input_ids", "position_ids", "pixel_values", "patch_positions", "patch_picture", "think",
                           "fixed_latents", "max_latent_steps", "max_new_tokens"};
    const std::array<Ort::Value, 9> feed{
        tensor(ids, {size}), tensor(places, {3, size}), tensor(cut.values, {cut.count, 3 * patch * patch}),
        tensor(cut.positions, {cut.count, 2}), tensor(pictures, {cut.count}), tensor(thinks, {}), tensor(fixed, {}),
        tensor(steps, {}), tensor(words, {})};
    const std::array wanted{"token_ids", "num_tokens", "latent_steps", "ar_steps"};
    const auto out = session.Run({}, names.data(), feed.data(), feed.size(), wanted.data(), wanted.size());

    const auto number = [&](size_t output) { return *out[output].GetTensorData<int64_t>(); };
    const int64_t* spoken = out[0].GetTensorData<int64_t>();
    const std::string text = tokenizer_.decode(Ids(spoken, spoken + number(1)));
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - started;
    return {text, number(2), number(1), number(3), took.count()};
  }

 private:
  const Json& program_of(const std::string& mode) const {
    const Json& programs = manifest_.at("programs");
    const bool known = mode == "latent" || mode == "cot" || mode == "direct";
    if (!known || !(programs.contains(mode) || programs.contains("latent")))
      throw std::runtime_error("there is no mode " + mode + "; ask in latent, cot or direct");
    const Json& program = programs.at(programs.contains(mode) ? mode : "latent");
    if (program.at("spec").at("form") != "program" || program.at("settings").at("replay").at("source") != "prompt")
      throw std::runtime_error("the bundle is in steps or looks closer, which lrkit.hpp cannot; export another");
    return program;
  }

  Ids prompt_ids(const Patches& cut, const std::string& question, const std::string& mode, int64_t image_id) const {
    const std::string answer = prompt_.at("answer");
    std::string text = prompt_.at("template");
    const auto put = [&](const std::string& name, const std::string& value) {
      text.replace(text.find(name), name.size(), value);
    };
    put("{images}", cut.count ? prompt_.at("image").get<std::string>() : "");
    put("{question}", question);
    if (mode == "direct") text += answer.substr(0, answer.find("{answer}"));
    Ids ids = tokenizer_.encode(text);
    if (std::count(ids.begin(), ids.end(), image_id) != (cut.count ? 1 : 0))
      throw std::runtime_error("the question holds the token of a picture; leave it out");
    if (const auto place = std::find(ids.begin(), ids.end(), image_id); place != ids.end())
      ids.insert(place, size_t(cut.rows * cut.columns - 1), image_id);
    return ids;
  }

  static void within(const std::string& what, int64_t count, const std::string& unit, int64_t most) {
    if (count > most)
      throw std::runtime_error(what + " " + std::to_string(count) + " " + unit + ", and the bundle takes " +
                               std::to_string(most));
  }

  Ort::Session& opened(const Json& program) {
    const std::string file = program.at("file");
    if (const auto found = sessions_.find(file); found != sessions_.end()) return found->second;
    checked(file);
    if (program.at("data").is_string()) checked(program.at("data"));
    return sessions_.emplace(file, Ort::Session(env_, (folder_ / file).c_str(), Ort::SessionOptions())).first->second;
  }

  /// A file's name, where it is as long as bundle.json says. For its SHA-256 take a library that has it.
  std::string checked(const std::string& file) const {
    const Json& files = manifest_.at("files");
    if (!files.contains(file)) throw std::runtime_error(file + " is not listed in bundle.json");
    std::error_code none;
    if (std::filesystem::file_size(folder_ / file, none) != files.at(file).at("bytes"))
      throw std::runtime_error(file + " was altered; copy the bundle again");
    return file;
  }

  Json parsed(const std::string& file) const {
    std::ifstream stream(folder_ / file, std::ios::binary);
    const std::string path = (folder_ / file).string();
    if (!stream) throw std::runtime_error(path + " cannot be read; give a folder that lrkit export wrote");
    const Json json = Json::parse(stream, nullptr, false);
    if (!json.is_object()) throw std::runtime_error(path + " is no JSON object; copy the bundle again");
    return json;
  }

  std::filesystem::path folder_;
  Json manifest_, image_, prompt_;
  Tokenizer tokenizer_;
  Ort::Env env_{ORT_LOGGING_LEVEL_ERROR, "lrkit"};
  std::map<std::string, Ort::Session> sessions_;
};

}  // namespace lrkit
