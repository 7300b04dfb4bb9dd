// Asks an lrkit bundle a question about a PNG, with ONNX Runtime and nothing of Python.
//
//     mvn -q compile exec:java -Dexec.args='BUNDLE rooms.png "Take 4 hops. Which room are you in? Start in room 3"'
//
// The answer goes to standard output, what it took to standard error: the same as `lrkit ask` prints.

import java.awt.image.BufferedImage;
import java.io.File;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Locale;
import javax.imageio.ImageIO;

public final class Ask {
  private Ask() {}

  public static void main(String[] words) {
    try {
      ask(words);
    } catch (Exception error) {
      System.err.println("error: " + error.getMessage());
      System.exit(2);
    }
  }

  private static void ask(String[] words) throws Exception {
    if (words.length < 3 || words.length > 4 || words[2].isEmpty()) {
      throw new IllegalArgumentException("usage: Ask BUNDLE PICTURE.png QUESTION [latent|cot|direct]");
    }
    try (Lrkit lrkit = new Lrkit(Path.of(words[0]), null)) {
      Lrkit.Answer answer = lrkit.ask(picture(words[1]), words[2], words.length > 3 ? words[3] : "latent");
      System.out.println(answer.text());
      System.err.printf(Locale.ROOT, "%d autoregressive steps (%d latent, %d tokens spoken), %.1f ms%n",
          answer.arSteps(), answer.latentSteps(), answer.spokenTokens(), answer.milliseconds());
    }
  }

  private static Lrkit.Picture picture(String path) {
    BufferedImage image;
    try {
      image = ImageIO.read(new File(path));
    } catch (IOException error) {
      image = null;
    }
    if (image == null) {
      throw new IllegalArgumentException(path + " cannot be read as a picture; give a PNG");
    }
    int width = image.getWidth();
    int height = image.getHeight();
    int[] argb = image.getRGB(0, 0, width, height, null, 0, width);
    if (image.getType() == BufferedImage.TYPE_BYTE_GRAY) { // getRGB would brighten it
      image.getRaster().getSamples(0, 0, width, height, 0, argb);
      argb = Arrays.stream(argb).map(gray -> 0xff000000 | gray * 0x10101).toArray();
    }
    return new Lrkit.Picture(width, height, argb);
  }
}
