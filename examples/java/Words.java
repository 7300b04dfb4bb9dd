// Text to the ids of words, and back: the tokenizer of the shipped model, for Lrkit.java where it is given none.

import com.fasterxml.jackson.databind.JsonNode;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.LongStream;
import java.util.stream.StreamSupport;

/**
 * Text to ids, and ids to text without special tokens. `whole` makes the one of the shipped model. For subwords give
 * one around a package that reads tokenizer.json: ai.djl.huggingface:tokenizers, or onnxruntime-extensions.
 */
public interface Words {
  long[] encode(String text);

  String decode(long[] ids);

  /** For the JSON of tokenizer.json. Throws where it has no whole words; `encode` throws where a word is unknown. */
  static Words whole(JsonNode file) {
    if (!file.at("/model/type").asText().equals("WordLevel")) {
      throw new IllegalArgumentException("the tokenizer is " + file.at("/model/type").asText()
          + ", and Words.java looks up whole words; give one of your own");
    }
    Map<String, Long> ids = new HashMap<>();
    file.at("/model/vocab").fields().forEachRemaining(entry -> ids.put(entry.getKey(), entry.getValue().asLong()));
    Set<Long> special = new HashSet<>();
    for (JsonNode token : file.path("added_tokens")) {
      ids.put(token.path("content").asText(), token.path("id").asLong());
      if (token.path("special").asBoolean()) {
        special.add(token.path("id").asLong());
      }
    }
    Map<Long, String> words = new HashMap<>();
    ids.forEach((word, id) -> words.put(id, word));
    // A token of `added` is cut out wherever it stands, also behind punctuation.
    String added = StreamSupport.stream(file.path("added_tokens").spliterator(), false)
        .map(token -> Pattern.quote(token.path("content").asText())).collect(Collectors.joining("|", "(?:", ")"));
    String pieces = added + "|(?:(?!ADDED)[\\p{L}\\p{N}_])+|(?:(?!ADDED)[^\\p{L}\\p{N}_\\s])+".replace("ADDED", added);
    Pattern pattern = Pattern.compile(pieces);
    return new Words() {
      @Override
      public long[] encode(String text) {
        return pattern.matcher(text).results().mapToLong(found -> {
          if (!ids.containsKey(found.group())) {
            throw new IllegalArgumentException(
                "the model does not know the word \"%s\"; use its words".formatted(found.group()));
          }
          return ids.get(found.group());
        }).toArray();
      }

      @Override
      public String decode(long[] spoken) {
        return LongStream.of(spoken).filter(id -> words.containsKey(id) && !special.contains(id)).mapToObj(words::get)
            .map(word -> word.matches("[.,;:!?]+") ? word : " " + word).collect(Collectors.joining()).strip();
      }
    };
  }
}
