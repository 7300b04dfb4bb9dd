// Asks a bundle of `lrkit export MODEL front=true` in C++17. Two runs do all the work: the bundle's front cuts the
// picture and numbers the prompt; its program reads, takes latent steps and speaks. What is left for this header is to
// look words up. bundle.json says what both graphs read and write, under front and programs.*.spec.
//
// For bundles in the form `program`, with one picture or none a question. Copy it and change it.

#pragma once

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "words.hpp"

namespace lrkit {

/// Red, green and blue bytes, row by row.
struct Picture {
  int64_t width = 0, height = 0;
  std::vector<uint8_t> rgb;
};

struct Answer {
  std::string text;
  int64_t latent_steps = 0, spoken_tokens = 0, ar_steps = 0;
  double milliseconds = 0;
};

/// ONNX Runtime's environment. From version 1.29 on it reports every session to its makers, unless it is told not to
/// before it is made (on Windows: after).
inline Ort::Env quiet() {
#ifndef _WIN32
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
#endif
  Ort::Env made(ORT_LOGGING_LEVEL_ERROR, "lrkit");
  made.DisableTelemetryEvents();
  return made;
}

class Reasoner {
 public:
  /// Opens a bundle. Throws where it is none, or one that this header cannot read.
  explicit Reasoner(std::filesystem::path folder, Tokenizer tokenizer = {}) : folder_(std::move(folder)) {
    manifest_ = parsed("bundle.json");
    const Json& schema = manifest_.at("schema_version");
    if (schema != 3) throw std::runtime_error("the bundle has schema " + schema.dump() + "; lrkit.hpp reads 3");
    if (!manifest_.contains("front") || manifest_.at("front").is_null())
      throw std::runtime_error("the bundle has no front; export it with front=true");
    prompt_ = parsed(checked("prompt.json"));
    tokenizer_ = tokenizer.encode ? std::move(tokenizer) : whole_words(parsed(checked("tokenizer.json")));
  }

  /// Answers a question about one picture, or about none (nullptr). `mode` is latent, cot or direct.
  Answer ask(const Picture* picture, const std::string& question, const std::string& mode = "latent") {
    const Json &program = program_of(mode), &think = program.at("settings").at("think");
    const Json& limits = manifest_.at("limits");
    Ort::Session &front = opened(manifest_.at("front")), &session = opened(program);
    const auto started = std::chrono::steady_clock::now();
    const int64_t side = manifest_.at("front").at("side");
    // Without a picture the front reads a black one, to which no token of the prompt refers.
    Picture seen = picture ? *picture : Picture{side, side, std::vector<uint8_t>(size_t(3 * side * side))};
    if (picture) check_size(seen);
    Ids tokens = prompt_ids(picture != nullptr, question, mode);

    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto tensor = [&](auto& values, std::vector<int64_t> shape) {
      return Ort::Value::CreateTensor(memory, values.data(), values.size(), shape.data(), shape.size());
    };
    const std::array<const char*, 2> given{"picture", "token_ids"};
    const std::array<Ort::Value, 2> read{tensor(seen.rgb, {seen.height, seen.width, 3}),
                                         tensor(tokens, {int64_t(tokens.size())})};
    std::vector<const char*> names;
    for (const Json& output : manifest_.at("front").at("outputs"))
      names.push_back(output.at("name").get_ref<const std::string&>().c_str());
    std::vector<Ort::Value> feed = front.Run({}, given.data(), read.data(), 2, names.data(), names.size());
    for (size_t i = 0; i < names.size(); ++i) {
      const int64_t rows = feed[i].GetTensorTypeAndShapeInfo().GetShape()[0];
      const std::string name = names[i];
      if (name == "input_ids") within("the prompt has", rows, "tokens", limits.at("max_prompt_tokens"));
      if (name == "pixel_values") within("the picture has", rows, "patches", limits.at("max_patches"));
    }

    const int64_t trained = think.at("max_latent_steps"), room = limits.at("max_latent_steps");
    std::array<bool, 1> thinks{mode == "latent"}, fixed{think.at("halting") == "fixed"};
    std::array<int64_t, 1> steps{std::min(trained, room)}, words{limits.at("max_new_tokens").get<int64_t>()};
    for (auto* flag : {&thinks, &fixed}) feed.push_back(tensor(*flag, {}));
    for (auto* number : {&steps, &words}) feed.push_back(tensor(*number, {}));
    names.insert(names.end(), {"think", "fixed_latents", "max_latent_steps", "max_new_tokens"});
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
    if (program.at("spec").at("form") != "program")
      throw std::runtime_error("the bundle is in steps, which lrkit.hpp cannot take; export it in the form program");
    return program;
  }

  void check_size(const Picture& picture) const {
    const Json& front = manifest_.at("front");
    const int64_t side = front.at("side"), least = front.at("least_pixels"), most = front.at("most_pixels");
    const int64_t width = picture.width, height = picture.height, pixels = width * height;
    if (width % side || height % side || pixels < least || pixels > most)
      throw std::runtime_error("the picture has " + std::to_string(width) + " x " + std::to_string(height) +
                               " pixels; scale it first to sides that are multiples of " + std::to_string(side) +
                               ", with " + std::to_string(least) + " to " + std::to_string(most) + " pixels in all");
  }

  Ids prompt_ids(bool picture, const std::string& question, const std::string& mode) const {
    const std::string answer = prompt_.at("answer");
    std::string text = prompt_.at("template");
    const auto put = [&](const std::string& name, const std::string& value) {
      text.replace(text.find(name), name.size(), value);
    };
    put("{images}", picture ? prompt_.at("image").get<std::string>() : "");
    put("{question}", question);
    if (mode == "direct") text += answer.substr(0, answer.find("{answer}"));
    Ids ids = tokenizer_.encode(text);
    const int64_t image = manifest_.at("tokens").at("image");
    if (std::count(ids.begin(), ids.end(), image) != (picture ? 1 : 0))
      throw std::runtime_error("the question holds the token of a picture; leave it out");
    return ids;
  }

  static void within(const std::string& what, int64_t count, const std::string& unit, int64_t most) {
    if (count > most)
      throw std::runtime_error(what + " " + std::to_string(count) + " " + unit + ", and the bundle takes " +
                               std::to_string(most));
  }

  /// The session of a graph of bundle.json.
  Ort::Session& opened(const Json& graph) {
    const std::string file = graph.at("file");
    if (const auto found = sessions_.find(file); found != sessions_.end()) return found->second;
    checked(file);
    if (graph.contains("data") && graph.at("data").is_string()) checked(graph.at("data"));
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
  Json manifest_, prompt_;
  Tokenizer tokenizer_;
  Ort::Env env_ = quiet();
  std::map<std::string, Ort::Session> sessions_;
};

}  // namespace lrkit
