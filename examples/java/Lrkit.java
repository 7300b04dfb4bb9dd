// Asks a bundle of `lrkit export MODEL front=true` in Java 17. Two runs do all the work: the bundle's front cuts the
// picture and numbers the prompt; its program reads, takes latent steps and speaks. What is left for this file is to
// look words up. bundle.json says what both graphs read and write, under front and programs.*.spec.
//
// For bundles in the form `program`, with one picture or none a question. Copy it and change it.

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
import java.util.Map;
import java.util.Set;
import java.util.stream.LongStream;

/** A bundle that is open. Several threads may ask it. */
public final class Lrkit implements AutoCloseable {
  /** Pixels row by row, each 0xAARRGGBB, as BufferedImage.getRGB gives them. */
  public record Picture(int width, int height, int[] argb) {}

  public record Answer(String text, long latentSteps, long spokenTokens, long arSteps, double milliseconds) {}

  private final OrtEnvironment environment =
      OrtEnvironment.getEnvironment(OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR, "lrkit");
  private final Map<String, OrtSession> sessions = new HashMap<>();
  private final Path folder;
  private final JsonNode manifest;
  private final JsonNode prompt;
  private final Words words;

  /**
   * ONNX Runtime from 1.29 on reports every session to its makers. Java can stop that once the environment is there; for
   * nothing at all, start Java with ORT_DISABLE_TELEMETRY=1.
   */
  private void beQuiet() {
    try {
      environment.setTelemetry(false);
    } catch (OrtException error) {
      throw refused("ONNX Runtime cannot be told to report nothing: %s", error.getMessage());
    }
  }

  /** Opens a bundle; `words` null: those of tokenizer.json. Throws where it is none that this file can read. */
  public Lrkit(Path folder, Words words) {
    beQuiet();
    this.folder = folder;
    if (!Files.isReadable(folder.resolve("bundle.json"))) {
      throw refused("%s is not there; give a folder that lrkit export wrote", folder.resolve("bundle.json"));
    }
    manifest = parsed(read("bundle.json"), "bundle.json");
    if (manifest.path("schema_version").asInt() != 3) {
      throw refused("the bundle has schema %s; Lrkit.java reads 3", manifest.path("schema_version"));
    }
    if (!manifest.hasNonNull("front")) {
      throw refused("the bundle has no front; export it with front=true");
    }
    prompt = parsed(checked("prompt.json"), "prompt.json");
    this.words = words != null ? words : Words.whole(parsed(checked("tokenizer.json"), "tokenizer.json"));
  }

  /** Answers a question about one picture, or about none (null). `mode` is latent, cot or direct. */
  public Answer ask(Picture picture, String question, String mode) throws OrtException {
    JsonNode program = programOf(mode);
    JsonNode think = program.at("/settings/think");
    JsonNode limits = manifest.path("limits");
    OrtSession front = opened(manifest.path("front"));
    OrtSession session = opened(program);
    long started = System.nanoTime();
    long[] tokens = promptIds(picture != null, question, mode);
    long room = Math.min(think.path("max_latent_steps").asLong(), limits.path("max_latent_steps").asLong());
    try (OnnxTensor pixels = pixels(picture);
        OnnxTensor ids = tensor(tokens, tokens.length);
        OnnxTensor thinks = OnnxTensor.createTensor(environment, mode.equals("latent"));
        OnnxTensor fixed = OnnxTensor.createTensor(environment, think.path("halting").asText().equals("fixed"));
        OnnxTensor steps = tensor(new long[] {room});
        OnnxTensor most = tensor(new long[] {limits.path("max_new_tokens").asLong()});
        OrtSession.Result read = front.run(Map.of("picture", pixels, "token_ids", ids))) {
      Map<String, OnnxTensor> feed = new HashMap<>(Map.of(
          "think", thinks, "fixed_latents", fixed, "max_latent_steps", steps, "max_new_tokens", most));
      read.forEach(made -> feed.put(made.getKey(), (OnnxTensor) made.getValue()));
      within("the prompt has", feed.get("input_ids"), "tokens", limits.path("max_prompt_tokens").asLong());
      within("the picture has", feed.get("pixel_values"), "patches", limits.path("max_patches").asLong());
      Set<String> wanted = Set.of("token_ids", "num_tokens", "latent_steps", "ar_steps");
      try (OrtSession.Result out = session.run(feed, wanted)) {
        long spoken = number(out, "num_tokens");
        long[] ended = (long[]) out.get("token_ids").orElseThrow().getValue();
        String text = words.decode(Arrays.copyOf(ended, (int) spoken));
        double took = (System.nanoTime() - started) / 1e6;
        return new Answer(text, number(out, "latent_steps"), spoken, number(out, "ar_steps"), took);
      }
    }
  }

  @Override
  public void close() throws OrtException {
    for (OrtSession session : sessions.values()) {
      session.close();
    }
  }

  /** A picture as the front reads it; none is a black one, to which no token of the prompt refers. */
  private OnnxTensor pixels(Picture picture) throws OrtException {
    JsonNode front = manifest.path("front");
    int side = front.path("side").asInt();
    Picture seen = picture != null ? picture : new Picture(side, side, new int[side * side]);
    long area = (long) seen.width * seen.height;
    boolean fits = area >= front.path("least_pixels").asLong() && area <= front.path("most_pixels").asLong();
    if (picture != null && (seen.width % side != 0 || seen.height % side != 0 || !fits)) {
      throw refused("the picture has %d x %d pixels; scale it first to sides that are multiples of %d, with %s to %s "
          + "pixels in all", seen.width, seen.height, side, front.path("least_pixels"), front.path("most_pixels"));
    }
    ByteBuffer rgb = ByteBuffer.allocateDirect(3 * seen.argb.length);
    for (int pixel : seen.argb) {
      if (picture != null && pixel >>> 24 != 255) {
        throw refused("the picture is transparent in places; lay it on white first");
      }
      rgb.put((byte) (pixel >> 16)).put((byte) (pixel >> 8)).put((byte) pixel);
    }
    long[] shape = {seen.height, seen.width, 3};
    return OnnxTensor.createTensor(environment, rgb.rewind(), shape, OnnxJavaType.UINT8);
  }

  private long[] promptIds(boolean picture, String question, String mode) {
    String text = prompt.path("template").asText().replace("{images}", picture ? prompt.path("image").asText() : "")
        .replace("{question}", question);
    if (mode.equals("direct")) {
      text += prompt.path("answer").asText().split("\\{answer}")[0];
    }
    long[] ids = words.encode(text);
    long token = manifest.at("/tokens/image").asLong();
    if (LongStream.of(ids).filter(id -> id == token).count() != (picture ? 1 : 0)) {
      throw refused("the question holds the token of a picture; leave it out");
    }
    return ids;
  }

  private JsonNode programOf(String mode) {
    JsonNode programs = manifest.path("programs");
    if (!Set.of("latent", "cot", "direct").contains(mode) || !(programs.has(mode) || programs.has("latent"))) {
      throw refused("there is no mode %s; ask in latent, cot or direct", mode);
    }
    JsonNode program = programs.path(programs.has(mode) ? mode : "latent");
    if (!program.at("/spec/form").asText().equals("program")) {
      throw refused("the bundle is in steps, which Lrkit.java cannot take; export it in the form program");
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

  private static void within(String what, OnnxTensor rows, String unit, long most) {
    long count = rows.getInfo().getShape()[0];
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
