// Text to the ids of words, and back: the tokenizer of the shipped model, which lrkit.hpp takes where it is given none.

#pragma once

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace lrkit {

using Json = nlohmann::json;
using Ids = std::vector<int64_t>;

/// Text to ids, and ids to text without special tokens. `whole_words` makes the one of the shipped model. For subwords
/// give two functions around a package that reads tokenizer.json: tokenizers-cpp, or onnxruntime-extensions.
struct Tokenizer {
  std::function<Ids(const std::string&)> encode;
  std::function<std::string(const Ids&)> decode;
};

/// Throws where the tokenizer is another; its `encode` throws where a word is unknown. A byte above ASCII is a letter.
inline Tokenizer whole_words(const Json& file) {
  const std::string kind = file.at("model").at("type");
  if (kind != "WordLevel")
    throw std::runtime_error("the tokenizer is " + kind + ", and words.hpp looks up whole words; give one of your own");
  auto ids = file.at("model").at("vocab").get<std::map<std::string, int64_t>>();
  std::vector<std::string> added;
  std::set<int64_t> special;
  for (const Json& token : file.at("added_tokens")) {
    added.push_back(token.at("content"));
    ids[added.back()] = token.at("id");
    if (token.at("special")) special.insert(token.at("id").get<int64_t>());
  }
  std::map<int64_t, std::string> words;
  for (const auto& [word, id] : ids) words[id] = word;

  // 0: space, 1: letters, 2: punctuation.
  const auto kind_of = [](unsigned char c) {
    if (std::isspace(c)) return 0;
    return c == '_' || c > 127 || std::isalnum(c) ? 1 : 2;
  };
  const auto added_at = [added](const std::string& text, size_t at) {
    size_t longest = 0;
    for (const std::string& token : added)
      if (text.compare(at, token.size(), token) == 0) longest = std::max(longest, token.size());
    return longest;
  };
  // The length of the piece of `text` that begins at `at`.
  const auto piece_at = [=](const std::string& text, size_t at) {
    if (const size_t size = added_at(text, at)) return size;
    size_t end = at + 1;
    while (end < text.size() && kind_of(text[end]) == kind_of(text[at]) && !added_at(text, end)) ++end;
    return end - at;
  };
  const auto encode = [=](const std::string& text) {
    Ids found;
    for (size_t at = 0, size = 0; at < text.size(); at += size) {
      size = piece_at(text, at);
      const std::string word = text.substr(at, size);
      if (kind_of(word[0]) == 0) continue;
      const auto known = ids.find(word);
      if (known == ids.end())
        throw std::runtime_error("the model does not know the word \"" + word + "\"; use its words");
      found.push_back(known->second);
    }
    return found;
  };
  const auto decode = [=](const Ids& spoken) {
    std::string text;
    for (int64_t id : spoken) {
      if (special.count(id) || !words.count(id)) continue;
      const std::string& word = words.at(id);
      if (!text.empty() && word.find_first_not_of(".,;:!?") != std::string::npos) text += ' ';
      text += word;
    }
    return text;
  };
  return {encode, decode};
}

}  // namespace lrkit
