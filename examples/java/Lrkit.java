// Asks a bundle of `lrkit export` in Java 17. One run of the bundle's program does all the work: reading, latent steps,
// replay, words. What is left for this file is to cut the picture, to number positions and to look words up.
// What the program reads and writes is said in bundle.json, programs.*.spec.
//
// For bundles of the family qwen2_vl in the form `program`, with one picture or none a question. Copy it and change it.

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtLoggingLevel;
import ai.onnxruntime.OrtSession;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.LongBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import java.util.function.DoubleUnaryOperator;
import java.util.stream.LongStream;

/** A bundle that is open. Several threads may ask it. */
public final class Lrkit implements AutoCloseable {
  /** Pixels row by row, each 0xAARRGGBB, as BufferedImage.getRGB gives them. */
  public record Picture(int width, int height, int[] argb) {}

  public record Answer(String text, long latentSteps, long spokenTokens, long arSteps, double milliseconds) {}

  private record Patches(ByteBuffer values, long[] positions, int count, int rows, int columns) {}

  private final OrtEnvironment environment =
      OrtEnvironment.getEnvironment(OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR, "lrkit");
  private final Map<String, OrtSession> sessions = new HashMap<>();
  private final Path folder;
  private final JsonNode manifest;
  private final JsonNode image;
  private final JsonNode prompt;
  private final Words words;

  /** Opens a bundle; `words` null: those of tokenizer.json. Throws where it is none that this file can read. */
  public Lrkit(Path folder, Words words) {
    this.folder = folder;
    if (!Files.isReadable(folder.resolve("bundle.json"))) {
      throw refused("%s is not there; give a folder that lrkit export wrote", folder.resolve("bundle.json"));
    }
    manifest = parsed(read("bundle.json"), "bundle.json");
    if (manifest.path("schema_version").asInt() != 3 || !manifest.path("family").asText().equals("qwen2_vl")) {
      throw refused("the bundle has schema %s and the family %s; Lrkit.java reads 3 and qwen2_vl",
          manifest.path("schema_version"), manifest.path("family"));
    }
    image = parsed(checked("preprocessor_config.json"), "preprocessor_config.json");
    prompt = parsed(checked("prompt.json"), "prompt.json");
    this.words = words != null ? words : Words.whole(parsed(checked("tokenizer.json"), "tokenizer.json"));
  }

  /** Answers a question about one picture, or about none (null). `mode` is latent, cot or direct. */
  public Answer ask(Picture picture, String question, String mode) throws OrtException {
    JsonNode program = programOf(mode);
    JsonNode think = program.at("/settings/think");
    JsonNode limits = manifest.path("limits");
    OrtSession session = opened(program);
    long started = System.nanoTime();
    Patches cut = picture == null ? none() : patchify(picture);
    long[] ids = promptIds(cut, question, mode);
    within("the picture has", cut.count, "patches", limits.path("max_patches").asInt());
    within("the prompt has", ids.length, "tokens", limits.path("max_prompt_tokens").asInt());
    Map<String, OnnxTensor> feed = new LinkedHashMap<>();
    try {
      feed.put("input_ids", tensor(ids, ids.length));
      feed.put("position_ids", tensor(positionIds(ids, cut), 3, ids.length));
      long[] shape = {cut.count, cut.values.capacity() / cut.count};
      feed.put("pixel_values", OnnxTensor.createTensor(environment, cut.values, shape, OnnxJavaType.UINT8));
      feed.put("patch_positions", tensor(cut.positions, cut.count, 2));
      feed.put("patch_picture", tensor(new long[cut.count], cut.count));
      feed.put("think", OnnxTensor.createTensor(environment, mode.equals("latent")));
      feed.put("fixed_latents", OnnxTensor.createTensor(environment, think.path("halting").asText().equals("fixed")));
      long steps = Math.min(think.path("max_latent_steps").asLong(), limits.path("max_latent_steps").asLong());
      feed.put("max_latent_steps", tensor(new long[] {steps}));
      feed.put("max_new_tokens", tensor(new long[] {limits.path("max_new_tokens").asLong()}));
      Set<String> wanted = Set.of("token_ids", "num_tokens", "latent_steps", "ar_steps");
      try (OrtSession.Result out = session.run(feed, wanted)) {
        long spoken = number(out, "num_tokens");
        long[] ended = (long[]) out.get("token_ids").orElseThrow().getValue();
        String text = words.decode(Arrays.copyOf(ended, (int) spoken));
        double took = (System.nanoTime() - started) / 1e6;
        return new Answer(text, number(out, "latent_steps"), spoken, number(out, "ar_steps"), took);
      }
    } finally {
      feed.values().forEach(OnnxTensor::close);
    }
  }

  @Override
  public void close() throws OrtException {
    for (OrtSession session : sessions.values()) {
      session.close();
    }
  }

  /** The size at which the model reads a picture: sides that are multiples of a visual token's, within the limits. */
  private int[] fit(int width, int height) {
    double least = image.at("/size/shortest_edge").asDouble();
    double most = image.at("/size/longest_edge").asDouble();
    double area = (double) width * height;
    int[] fitted = sized(width, height, 1, Math::rint); // a half goes to the even neighbour, as in Python
    double read = (double) fitted[0] * fitted[1];
    if (read > most) {
      return sized(width, height, Math.sqrt(most / area), Math::floor);
    }
    return read < least ? sized(width, height, Math.sqrt(least / area), Math::ceil) : fitted;
  }

  private int[] sized(int width, int height, double scale, DoubleUnaryOperator round) {
    int side = image.path("patch_size").asInt() * image.path("merge_size").asInt();
    return Arrays.stream(new int[] {width, height})
        .map(edge -> Math.max(side, (int) round.applyAsDouble(edge * scale / side) * side)).toArray();
  }

  /**
   * Patches in the order of the spatial merge: squares of merge x merge patches, row by row; each holds the bytes of
   * the picture by channel, row, column. Throws where the picture has another size than `fit` says, or is transparent.
   */
  private Patches patchify(Picture picture) {
    int patch = image.path("patch_size").asInt();
    int merge = image.path("merge_size").asInt();
    int[] seen = fit(picture.width, picture.height);
    if (seen[0] != picture.width || seen[1] != picture.height) {
      throw refused("the picture has %d x %d pixels, and the model reads it at %d x %d; scale it first",
          picture.width, picture.height, seen[0], seen[1]);
    }
    int rows = seen[1] / patch / merge;
    int columns = seen[0] / patch / merge;
    int count = rows * columns * merge * merge;
    ByteBuffer values = ByteBuffer.allocateDirect(count * 3 * patch * patch);
    long[] positions = new long[2 * count];
    for (int i = 0; i < count; i++) {
      int square = i / (merge * merge);
      int inside = i % (merge * merge);
      int row = square / columns * merge + inside / merge;
      int column = square % columns * merge + inside % merge;
      positions[2 * i] = row;
      positions[2 * i + 1] = column;
      for (int shift = 16; shift >= 0; shift -= 8) {
        for (int pixel = 0; pixel < patch * patch; pixel++) {
          int at = (row * patch + pixel / patch) * picture.width + column * patch + pixel % patch;
          if (picture.argb[at] >>> 24 != 255) {
            throw refused("the picture is transparent in places; lay it on white first");
          }
          values.put((byte) (picture.argb[at] >> shift));
        }
      }
    }
    return new Patches(values.rewind(), positions, count, rows, columns);
  }

  /** Without a picture the program reads one square of zeros. */
  private Patches none() {
    int square = image.path("merge_size").asInt() * image.path("merge_size").asInt();
    int patch = image.path("patch_size").asInt();
    return new Patches(ByteBuffer.allocateDirect(square * 3 * patch * patch), new long[2 * square], square, 0, 0);
  }

  private long[] promptIds(Patches cut, String question, String mode) {
    long token = manifest.at("/tokens/image").asLong();
    int visual = cut.rows * cut.columns;
    String text = prompt.path("template").asText().replace("{images}", visual > 0 ? prompt.path("image").asText() : "")
        .replace("{question}", question);
    if (mode.equals("direct")) {
      text += prompt.path("answer").asText().split("\\{answer}")[0];
    }
    long[] ids = words.encode(text);
    if (LongStream.of(ids).filter(id -> id == token).count() != (visual > 0 ? 1 : 0)) {
      throw refused("the question holds the token of a picture; leave it out");
    }
    return LongStream.of(ids).flatMap(id -> LongStream.generate(() -> id).limit(id == token ? visual : 1)).toArray();
  }

  /**
   * Text counts on in all three sections. Visual tokens share the first and spread over rows and columns in the others,
   * unless the checkpoint says that they count on like text.
   */
  private long[] positionIds(long[] ids, Patches cut) {
    int visual = cut.rows * cut.columns;
    boolean grid = visual > 0 && image.path("visual_positions").asText("grid").equals("grid");
    int start = 0;
    while (grid && ids[start] != manifest.at("/tokens/image").asLong()) {
      start++;
    }
    long[] sections = new long[3 * ids.length];
    for (int section = 0; section < 3; section++) {
      for (int i = 0; i < ids.length; i++) {
        long place = i;
        if (grid && i >= start + visual) {
          place = i - visual + Math.max(cut.rows, cut.columns);
        } else if (grid && i >= start) {
          place = start + new int[] {0, (i - start) / cut.columns, (i - start) % cut.columns}[section];
        }
        sections[section * ids.length + i] = place;
      }
    }
    return sections;
  }

  private JsonNode programOf(String mode) {
    JsonNode programs = manifest.path("programs");
    if (!Set.of("latent", "cot", "direct").contains(mode) || !(programs.has(mode) || programs.has("latent"))) {
      throw refused("there is no mode %s; ask in latent, cot or direct", mode);
    }
    JsonNode program = programs.path(programs.has(mode) ? mode : "latent");
    if (!program.at("/spec/form").asText().equals("program")
        || !program.at("/settings/replay/source").asText().equals("prompt")) {
      throw refused("the bundle is in steps or looks closer, which Lrkit.java cannot; export another");
    }
    return program;
  }

  private synchronized OrtSession opened(JsonNode program) throws OrtException {
    String file = program.path("file").asText();
    if (!sessions.containsKey(file)) {
      checked(file);
      if (program.hasNonNull("data")) {
        checked(program.path("data").asText());
      }
      sessions.put(file, environment.createSession(folder.resolve(file).toString(), new OrtSession.SessionOptions()));
    }
    return sessions.get(file);
  }

  private OnnxTensor tensor(long[] values, long... shape) throws OrtException {
    return OnnxTensor.createTensor(environment, LongBuffer.wrap(values), shape);
  }

  private static long number(OrtSession.Result out, String name) throws OrtException {
    return (long) out.get(name).orElseThrow().getValue();
  }

  private static void within(String what, int count, String unit, int most) {
    if (count > most) {
      throw refused("%s %d %s, and the bundle takes %d", what, count, unit, most);
    }
  }

  /** The bytes of a file, held against its SHA-256. */
  private byte[] checked(String name) {
    if (!manifest.path("files").has(name)) {
      throw refused("%s is not listed in bundle.json", name);
    }
    byte[] bytes = read(name);
    try {
      String found = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
      if (!found.equals(manifest.path("files").path(name).path("sha256").asText())) {
        throw refused("%s was altered; copy the bundle again", name);
      }
      return bytes;
    } catch (NoSuchAlgorithmException impossible) {
      throw new AssertionError(impossible);
    }
  }

  private byte[] read(String name) {
    try {
      return Files.readAllBytes(folder.resolve(name));
    } catch (IOException error) {
      throw refused("%s cannot be read; copy the bundle again", folder.resolve(name));
    }
  }

  private static JsonNode parsed(byte[] bytes, String name) {
    try {
      return new ObjectMapper().readTree(bytes);
    } catch (IOException error) {
      throw refused("%s is no JSON; copy the bundle again", name);
    }
  }

  private static IllegalArgumentException refused(String sentence, Object... values) {
    return new IllegalArgumentException(sentence.formatted(values));
  }
}
