/** TLS, sockets and Zstandard differ between runtimes: what is tried between memservers on Bun holds on Deno too. */
import "../integration/memserver-peer.test.ts";
import "../integration/memserver-peer-connections.test.ts";
import "../unit/memserver-peer-frames.test.ts";
import "../unit/memserver-peer-keys.test.ts";
import "../unit/memserver-remote-image.test.ts";
