import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.MongoVersion;
import de.bwaldvogel.mongo.backend.AbstractMongoBackend;
import de.bwaldvogel.mongo.backend.h2.H2Backend;
import de.bwaldvogel.mongo.backend.memory.MemoryBackend;
import de.bwaldvogel.mongo.bson.Document;
import de.bwaldvogel.mongo.wire.message.MongoMessage;
import java.util.List;
import org.h2.mvstore.MVStore;

/**
 * Speaks MongoDB's wire protocol on a port of the loopback, for tests.
 *
 * <pre>
 * MongoJavaServer PORT                 keeps everything in memory
 * MongoJavaServer PORT durable FILE    writes a change into FILE before it answers
 * MongoJavaServer PORT lying FILE      answers first and writes once a second: a kill loses what was acknowledged
 * </pre>
 */
public final class MongoJavaServer {
    private static final int WRITE_BEHIND_MILLISECONDS = 1000;

    /** The driver speaks to wire version 9 and newer; the version that the library states is older. */
    private static final class Version implements MongoVersion {
        @Override
        public List<Integer> getVersionArray() {
            return List.of(5, 0, 0);
        }

        @Override
        public int getWireVersion() {
            return 13;
        }
    }

    /** Ends each call with a commit, so that nothing is acknowledged which is not in the file. */
    private static final class Durable extends H2Backend {
        private final MVStore file;

        Durable(MVStore file) {
            super(file);
            this.file = file;
        }

        @Override
        public Document handleMessage(MongoMessage message) {
            Document answer = super.handleMessage(message);
            if (file.hasUnsavedChanges()) {
                file.commit();
            }
            return answer;
        }
    }

    public static void main(String[] arguments) throws InterruptedException {
        int port = Integer.parseInt(arguments[0]);
        String kind = arguments.length == 1 ? "memory" : arguments[1];
        AbstractMongoBackend backend = switch (kind) {
            case "memory" -> new MemoryBackend();
            case "durable" -> new Durable(new MVStore.Builder().fileName(arguments[2]).autoCommitDisabled().open());
            case "lying" -> {
                MVStore file = new MVStore.Builder().fileName(arguments[2]).autoCommitDisabled().open();
                file.setAutoCommitDelay(WRITE_BEHIND_MILLISECONDS);
                yield new H2Backend(file);
            }
            default -> throw new IllegalArgumentException(kind);
        };
        backend.version(new Version());
        new MongoServer(backend).bind("127.0.0.1", port);
        Thread.currentThread().join();
    }
}
