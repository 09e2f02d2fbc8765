/* Load generator for the benchmarks: closed loops over TCP, Unix sockets and UDP, an open UDP
 * loop, connection churn, idle connections, and HTTP. One thread, one epoll.
 *
 * Owns: making load, checking every echoed byte, or the status and the length of every HTTP
 * answer, counting and timing the answers. Built with -DTLS it can speak TLS, by OpenSSL.
 * Leaves: starting servers, their CPU time and every comparison to run.py.
 *
 * It connects to 127.0.0.0/8, ::1 or a Unix path, and refuses any other address.
 *
 * The run has a warm-up and a measured phase. Each ends only when everything in flight was
 * answered, so that whoever reads the server's CPU clock between them (--wait) charges it with
 * exactly the messages counted here.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#ifdef TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

enum { EVENTS = 256, READ_SIZE = 256 * 1024, OPENING = 64, SOURCES = 4096 };

#define SECOND UINT64_C(1000000000)
/* How long the end of a phase waits for answers that are still in flight. */
#define PATIENCE (5 * SECOND)

enum mode { TCP, CHURN, IDLE, UDP, UDP_OPEN, HTTP };

static const char *const MODES[] = {"tcp", "churn", "idle", "udp", "udp-open", "http"};

enum { HEAD_SIZE = 2048 };

static struct {
    enum mode mode;
    struct sockaddr_storage address;
    socklen_t address_size;
    size_t connections, size;
    double seconds, warmup, rate;
    uint64_t timeout;
    bool wait, reset, tls;
    const char *end;
    const char *request; /* http: the file with the request */
    size_t pipeline;
    bool vary; /* http: number the requests, see find_fields */
} options = {.connections = 64,
             .size = 64,
             .seconds = 1,
             .warmup = 0.2,
             .timeout = SECOND / 5,
             .end = "",
             .pipeline = 1};

struct connection {
    int fd; /* -1: closed */
    bool busy;
    size_t sent, received;
    uint64_t started; /* when the message was sent, or the connection begun */
    uint64_t sequence;
    char *message; /* what is sent: everybody's, or with numbers of its own */
    void *tls;
    /* http: the answers so far, the head of the one that is coming, what is left of its body. */
    size_t answers, head_size, left;
    char head[HEAD_SIZE + 1];
};

/* Log-linear latency buckets: 64 per power of two, so that a bucket is 1.6 % wide. */
enum { FINE = 6, BUCKETS = (65 - FINE) << FINE };

static struct {
    uint64_t messages, errors, lost, late, sent, skipped;
    uint64_t started, finished, longest;
    uint64_t buckets[BUCKETS];
} stats;

static int poller;
static struct connection *connections;
static size_t busy, opened;
static char *message, input[READ_SIZE];

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(2);
}

static uint64_t now(void) {
    struct timespec clock;
    clock_gettime(CLOCK_MONOTONIC, &clock);
    return (uint64_t)clock.tv_sec * SECOND + (uint64_t)clock.tv_nsec;
}

/* ---- figures ---- */

static size_t bucket_of(uint64_t nanoseconds) {
    if (nanoseconds < 1 << FINE)
        return nanoseconds;
    unsigned shift = 63 - FINE - (unsigned)__builtin_clzll(nanoseconds);
    return ((size_t)shift << FINE) + (nanoseconds >> shift);
}

static double bucket_middle(size_t bucket) {
    if (bucket < 2 << FINE)
        return (double)bucket;
    unsigned shift = (unsigned)(bucket >> FINE) - 1;
    uint64_t low = (uint64_t)(bucket - ((size_t)shift << FINE)) << shift;
    return (double)low + (double)(UINT64_C(1) << shift) / 2;
}

static void count_answer(uint64_t started, uint64_t ended) {
    uint64_t latency = ended > started ? ended - started : 0;
    stats.messages++;
    stats.buckets[bucket_of(latency)]++;
    if (latency > stats.longest)
        stats.longest = latency;
}

static double percentile(double share) {
    uint64_t wanted = (uint64_t)((double)stats.messages * share), seen = 0;
    for (size_t i = 0; i < BUCKETS; i++)
        if ((seen += stats.buckets[i]) > wanted)
            return bucket_middle(i) / 1000;
    return (double)stats.longest / 1000;
}

static void report(void) {
    printf("{\"mode\": \"%s\", \"messages\": %" PRIu64 ", \"seconds\": %.6f, \"errors\": %" PRIu64
           ", \"lost\": %" PRIu64 ", \"late\": %" PRIu64 ", \"sent\": %" PRIu64
           ", \"skipped\": %" PRIu64 ", \"bytes\": %" PRIu64
           ", \"p50_us\": %.2f, \"p99_us\": %.2f, \"max_us\": %.2f}\n",
           MODES[options.mode], stats.messages,
           (double)(stats.finished - stats.started) / (double)SECOND, stats.errors, stats.lost,
           stats.late, stats.sent, stats.skipped, stats.messages * options.size, percentile(0.50),
           percentile(0.99), (double)stats.longest / 1000);
    fflush(stdout);
}

/* ---- sockets ---- */

static int family(void) { return options.address.ss_family; }

static int new_socket(int type) {
    int fd = socket(family(), type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket: %s", strerror(errno));
    return fd;
}

static void watch(struct connection *c) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event))
        die("epoll_ctl: %s", strerror(errno));
}

static void shut(struct connection *c) {
    if (c->fd < 0)
        return;
#ifdef TLS
    SSL_free(c->tls);
    c->tls = NULL;
#endif
    if (options.reset) {
        struct linger linger = {.l_onoff = 1};
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    }
    close(c->fd);
    c->fd = -1;
}

/* ---- TLS: send and recv, with records in between ---- */

static ssize_t put(struct connection *c, const char *data, size_t size) {
#ifdef TLS
    if (c->tls) {
        int n = SSL_write(c->tls, data, (int)size);
        if (n > 0)
            return n;
        int error = SSL_get_error(c->tls, n);
        errno = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
        ERR_clear_error();
        return -1;
    }
#endif
    return send(c->fd, data, size, MSG_NOSIGNAL);
}

static ssize_t take(struct connection *c, char *data, size_t size) {
#ifdef TLS
    if (c->tls) {
        int n = SSL_read(c->tls, data, (int)size);
        if (n > 0)
            return n;
        int error = SSL_get_error(c->tls, n);
        if (error == SSL_ERROR_ZERO_RETURN)
            return 0;
        errno = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
        ERR_clear_error();
        return -1;
    }
#endif
    return recv(c->fd, data, size, 0);
}

/* One cipher for all servers, the one that OpenSSL prefers: ciphers are not what is compared. */
static void begin_tls(struct connection *c) {
#ifdef TLS
    static SSL_CTX *context;
    if (!context) {
        context = SSL_CTX_new(TLS_client_method());
        if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) ||
            !SSL_CTX_set_ciphersuites(context, "TLS_AES_256_GCM_SHA384"))
            die("OpenSSL has no TLS 1.3");
        SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE |
                                      SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    }
    SSL *tls = SSL_new(context);
    if (!tls || !SSL_set_fd(tls, c->fd))
        die("OpenSSL has no memory");
    SSL_set_connect_state(tls);
    c->tls = tls;
#else
    (void)c;
    die("this program was built without TLS");
#endif
}

/* Each connection leaves from the next of many loopback addresses: the ports of one address
 * would all be in TIME_WAIT after seconds of churn. */
static void bind_source(int fd) {
    static uint32_t next;
    struct sockaddr_in source = {.sin_family = AF_INET};
    int on = 1;
    source.sin_addr.s_addr = htonl(0x7f010001 + next++ % SOURCES);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&source, sizeof source))
        die("bind: %s", strerror(errno));
}

static bool open_stream(struct connection *c) {
    int on = 1;
    c->fd = new_socket(SOCK_STREAM);
    if (family() != AF_UNIX)
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (family() == AF_INET && options.mode == CHURN)
        bind_source(c->fd);
    if (connect(c->fd, (struct sockaddr *)&options.address, options.address_size) &&
        errno != EINPROGRESS) {
        shut(c);
        return false;
    }
    if (options.tls)
        begin_tls(c);
    watch(c);
    return true;
}

static void open_datagram(struct connection *c) {
    int size = 4 << 20; /* a loss must be the server's, not ours */
    c->fd = new_socket(SOCK_DGRAM);
    if (setsockopt(c->fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size))
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (connect(c->fd, (struct sockaddr *)&options.address, options.address_size))
        die("connect: %s", strerror(errno));
    watch(c);
}

/* ---- requests that differ ---- */

/* In the file of a request eight of these are a number, in digits: '#' of the request, and '~'
 * of the user who makes it, who is another one after so many requests of a connection. */
enum { DIGITS = 8, FIELDS = 64, USER_REQUESTS = 100 };

static struct {
    size_t offset;
    bool user;
} fields[FIELDS];
static size_t field_count;

static void find_fields(void) {
    for (size_t i = 0; i + DIGITS <= options.size; i++) {
        bool user = !memcmp(message + i, "~~~~~~~~", DIGITS);
        if (!user && memcmp(message + i, "########", DIGITS))
            continue;
        if (field_count == FIELDS)
            die("the request has more than %d numbers", FIELDS);
        fields[field_count].offset = i;
        fields[field_count++].user = user;
        i += DIGITS - 1;
    }
    if (!field_count)
        die("%s has no number that could vary", options.request);
}

/* Requests that are pipelined are one: they go out at once, and have the same numbers. */
static void write_numbers(struct connection *c) {
    static uint64_t requests;
    if (!c->message) {
        c->message = malloc(options.size);
        memcpy(c->message, message, options.size);
    }
    uint64_t user = c->sequence++ / USER_REQUESTS * options.connections;
    user += (uint64_t)(c - connections);
    requests++;
    for (size_t i = 0; i < field_count; i++) {
        uint64_t number = fields[i].user ? user : requests;
        for (size_t digit = DIGITS; digit--; number /= 10)
            c->message[fields[i].offset + digit] = (char)('0' + number % 10);
    }
}

/* ---- streams: tcp, churn, idle, http ---- */

static void begin(struct connection *c);

static void fail(struct connection *c) {
    stats.errors++;
    shut(c);
    c->busy = false;
    busy--;
}

static void send_rest(struct connection *c) {
    const char *data = c->message ? c->message : message;
    while (c->sent < options.size) {
        ssize_t n = put(c, data + c->sent, options.size - c->sent);
        if (n < 0) {
            if (errno != EAGAIN && errno != EINTR)
                fail(c);
            return;
        }
        c->sent += (size_t)n;
    }
}

static void begin(struct connection *c) {
    c->started = now();
    c->sent = c->received = 0;
    c->answers = c->head_size = c->left = 0;
    if (options.vary)
        write_numbers(c);
    c->busy = true;
    busy++;
    if (c->fd < 0 && !open_stream(c))
        fail(c);
    else
        send_rest(c);
}

static void answered(struct connection *c, uint64_t deadline) {
    uint64_t ended = now();
    for (size_t i = 0; i < options.pipeline; i++)
        count_answer(c->started, ended);
    c->busy = false;
    busy--;
    if (options.mode == CHURN)
        shut(c);
    if (options.mode == IDLE) {
        if (opened < options.connections)
            begin(&connections[opened++]);
    } else if (ended < deadline) {
        begin(c);
    }
}

/* Take in a part of some answers; false: that is not what was asked for. */
static bool take_http(struct connection *c, const char *data, size_t size) {
    while (size) {
        if (c->answers == options.pipeline)
            return false;
        size_t used = size < c->left ? size : c->left;
        if (!c->left) {
            size_t room = HEAD_SIZE - c->head_size;
            size_t more = size < room ? size : room;
            memcpy(c->head + c->head_size, data, more);
            c->head[c->head_size + more] = 0;
            char *end = strstr(c->head, "\r\n\r\n");
            if (!end) {
                c->head_size += more;
                return more == size; /* no head is that long */
            }
            end[2] = 0;
            used = (size_t)(end + 4 - c->head) - c->head_size;
            c->head_size = 0;
            char *length = strcasestr(c->head, "\r\ncontent-length:");
            if (strncmp(c->head, "HTTP/1.1 200 ", 13) || !length)
                return false;
            c->left = strtoul(length + 17, NULL, 10);
        } else {
            c->left -= used;
        }
        if (!c->left)
            c->answers++;
        data += used;
        size -= used;
    }
    return true;
}

static bool take_echo(struct connection *c, size_t size) {
    if (size > c->sent - c->received || memcmp(input, message + c->received, size))
        return false;
    c->received += size;
    return true;
}

static void on_stream(struct connection *c, uint32_t events, uint64_t deadline) {
    if (c->fd < 0)
        return;
    if (c->busy && (events & EPOLLOUT || c->tls) && c->sent < options.size)
        send_rest(c); /* a handshake reads before it can write */
    if (c->fd < 0 || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return;
    /* Edge triggered: a short read emptied the socket, a full one must be followed by another;
     * so must every record of TLS. */
    for (ssize_t n = READ_SIZE; n == READ_SIZE || c->tls;) {
        n = take(c, input, READ_SIZE);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        bool http = options.request != NULL;
        if (n > 0 && c->busy &&
            (http ? take_http(c, input, (size_t)n) : take_echo(c, (size_t)n))) {
            if (http ? c->answers == options.pipeline : c->received == options.size) {
                answered(c, deadline);
                return;
            }
            continue;
        }
        if (c->busy) {
            fail(c); /* closed too early, or not the bytes that were sent */
        } else {
            stats.errors++; /* something arrived or was closed while nothing was asked */
            shut(c);
        }
        return;
    }
}

static void stream_phase(uint64_t deadline) {
    struct epoll_event events[EVENTS];
    size_t first = options.mode == IDLE ? 0 : options.connections;
    for (size_t i = 0; i < first; i++) {
        if (connections[i].fd >= 0 || options.mode == CHURN)
            begin(&connections[i]);
        else
            stats.errors++; /* lost in the warm-up */
    }
    while (options.mode == IDLE && opened < options.connections && opened < OPENING)
        begin(&connections[opened++]);
    for (uint64_t time = now(); busy && time < deadline + PATIENCE; time = now()) {
        int count = epoll_wait(poller, events, EVENTS, 100);
        for (int i = 0; i < count; i++)
            on_stream(events[i].data.ptr, events[i].events, deadline);
        if (options.mode == CHURN && now() < deadline) /* those that failed try again */
            for (size_t i = 0; busy < options.connections && i < options.connections; i++)
                if (!connections[i].busy)
                    begin(&connections[i]);
    }
    for (size_t i = 0; busy && i < options.connections; i++)
        if (connections[i].busy)
            fail(&connections[i]);
}

/* ---- UDP: a closed loop with one datagram in flight per socket ---- */

struct stamp {
    uint64_t sequence, time;
};

static bool send_datagram(struct connection *c) {
    struct stamp stamp = {.sequence = ++c->sequence, .time = now()};
    memcpy(message, &stamp, sizeof stamp);
    c->started = stamp.time;
    stats.sent++;
    if (send(c->fd, message, options.size, 0) == (ssize_t)options.size)
        return true;
    stats.errors++;
    return false;
}

/* The stamp of the next echoed datagram, or false when there is none. */
static bool receive_datagram(struct connection *c, struct stamp *stamp) {
    for (;;) {
        ssize_t n = recv(c->fd, input, READ_SIZE, 0);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            stats.errors += errno != EAGAIN;
            return false;
        }
        if ((size_t)n == options.size && !memcmp(input + sizeof *stamp, message + sizeof *stamp,
                                                 options.size - sizeof *stamp)) {
            memcpy(stamp, input, sizeof *stamp);
            return true;
        }
        stats.errors++;
    }
}

static void ask(struct connection *c, uint64_t deadline) {
    c->busy = now() < deadline;
    if (!c->busy)
        busy--;
    else
        send_datagram(c);
}

static void datagram_phase(uint64_t deadline) {
    struct epoll_event events[EVENTS];
    struct stamp stamp;
    uint64_t swept = now();
    busy = options.connections;
    for (size_t i = 0; i < options.connections; i++)
        ask(&connections[i], deadline);
    while (busy) {
        int count = epoll_wait(poller, events, EVENTS, 10);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            while ((events[i].events & (EPOLLIN | EPOLLERR)) && receive_datagram(c, &stamp)) {
                if (!c->busy || stamp.sequence != c->sequence) {
                    stats.late++;
                    continue;
                }
                count_answer(c->started, now());
                ask(c, deadline);
                if (c->busy)
                    break; /* a new datagram is out: its answer is a new edge */
            }
        }
        uint64_t time = now();
        if (time - swept < options.timeout / 8)
            continue;
        swept = time;
        for (size_t i = 0; i < options.connections; i++)
            if (connections[i].busy && time - connections[i].started > options.timeout) {
                stats.lost++;
                ask(&connections[i], deadline);
            }
    }
}

/* ---- UDP: an open loop, which sends on time whatever comes back ---- */

static bool collect(int wait_ms) {
    struct epoll_event events[EVENTS];
    struct stamp stamp;
    int count = epoll_wait(poller, events, EVENTS, wait_ms);
    for (int i = 0; i < count; i++)
        while (receive_datagram(events[i].data.ptr, &stamp))
            count_answer(stamp.time, now());
    return count > 0;
}

static void open_phase(uint64_t deadline) {
    uint64_t began = now(), due = 0;
    /* After a stall of this process the schedule moves on: catching up in one burst would
     * overflow the server's buffer, and count our stall as its loss. */
    uint64_t most = (uint64_t)(options.rate / 2000) + 1;
    size_t next = 0;
    for (uint64_t time = began; time < deadline; time = now()) {
        due = (uint64_t)((double)(time - began) * options.rate / (double)SECOND);
        if (due > stats.sent + stats.skipped + most)
            stats.skipped = due - stats.sent - most;
        for (int i = 0; i < 16 && stats.sent + stats.skipped < due; i++)
            send_datagram(&connections[next++ % options.connections]);
        collect(0);
    }
    while (collect(200))
        ;
    stats.lost = stats.sent > stats.messages ? stats.sent - stats.messages : 0;
    stats.finished = deadline; /* the silence awaited above is not part of the run */
}

/* ---- the run ---- */

static void phase(double seconds) {
    memset(&stats, 0, sizeof stats);
    stats.started = now();
    uint64_t deadline = stats.started + (uint64_t)(seconds * (double)SECOND);
    if (options.mode == UDP)
        datagram_phase(deadline);
    else if (options.mode == UDP_OPEN)
        open_phase(deadline);
    else
        stream_phase(deadline);
    if (!stats.finished)
        stats.finished = now();
}

static void open_all(void) {
    connections = calloc(options.connections, sizeof *connections);
    for (size_t i = 0; i < options.connections; i++)
        connections[i].fd = -1;
    for (size_t i = 0; i < options.connections; i++) {
        if (options.mode == UDP || options.mode == UDP_OPEN)
            open_datagram(&connections[i]);
        else if ((options.mode == TCP || options.mode == HTTP) && !open_stream(&connections[i]))
            die("connect: %s", strerror(errno));
    }
}

/* Letters that never repeat with a short period: a shifted or doubled echo is noticed. */
static void make_message(void) {
    uint32_t state = 1;
    size_t tail = strlen(options.end);
    message = malloc(options.size);
    for (size_t i = 0; i < options.size; i++) {
        state = state * 1664525 + 1013904223;
        message[i] = (char)('a' + (state >> 24) % 26);
    }
    memcpy(message + options.size - tail, options.end, tail);
}

/* What is in the file, as often as it is pipelined. */
static void read_request(void) {
    FILE *file = fopen(options.request, "rb");
    if (!file)
        die("%s: %s", options.request, strerror(errno));
    size_t size = fread(input, 1, READ_SIZE, file);
    fclose(file);
    if (!size || size == READ_SIZE)
        die("%s is no request", options.request);
    options.size = size * options.pipeline;
    message = malloc(options.size);
    for (size_t i = 0; i < options.pipeline; i++)
        memcpy(message + i * size, input, size);
    if (options.vary)
        find_fields();
}

static void wait_for_line(void) {
    for (int c = getchar(); c != '\n' && c != EOF;)
        c = getchar();
}

static void parse_address(char *text) {
    struct sockaddr_un *path = (struct sockaddr_un *)&options.address;
    struct sockaddr_in *four = (struct sockaddr_in *)&options.address;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)&options.address;
    if (!strncmp(text, "unix:", 5)) {
        if (strlen(text + 5) >= sizeof path->sun_path)
            die("%s: the path is too long", text);
        path->sun_family = AF_UNIX;
        strcpy(path->sun_path, text + 5);
        options.address_size = sizeof *path;
        return;
    }
    char *colon = strrchr(text, ':');
    long port = colon ? strtol(colon + 1, NULL, 10) : 0;
    if (port < 1 || port > 65535)
        die("%s: expected 127.x.y.z:PORT, [::1]:PORT or unix:PATH", text);
    *colon = 0;
    if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
        if (ntohl(four->sin_addr.s_addr) >> 24 != 127)
            die("%s: only loopback addresses are loaded", text);
        four->sin_family = AF_INET;
        four->sin_port = htons((uint16_t)port);
        options.address_size = sizeof *four;
    } else if (!strcmp(text, "[::1]")) {
        six->sin6_family = AF_INET6;
        six->sin6_addr = in6addr_loopback;
        six->sin6_port = htons((uint16_t)port);
        options.address_size = sizeof *six;
    } else {
        die("%s: only loopback addresses are loaded", text);
    }
}

static const char USAGE[] =
    "usage: load MODE ADDRESS [options]\n"
    "  MODE      tcp | churn | idle | udp | udp-open | http\n"
    "  ADDRESS   127.x.y.z:PORT | [::1]:PORT | unix:PATH\n"
    "  -c, --connections N   connections or sockets (64)\n"
    "  -m, --size BYTES      size of a message (64)\n"
    "  -d, --seconds S       length of the measured phase (1)\n"
    "  -w, --warmup S        length of the phase before it (0.2)\n"
    "  -r, --rate N          udp-open: datagrams per second\n"
    "  -t, --timeout MS      udp: when an answer counts as lost (200)\n"
    "  -e, --end-crlf        end each message with CRLF CRLF, for framed servers\n"
    "  -q, --request FILE    http, churn, idle: the request; its answers must have a\n"
    "                        Content-Length\n"
    "  -p, --pipeline N      http: send so many at a time (1)\n"
    "  -v, --vary            http: ######## in the request is its number, ~~~~~~~~ a user's\n"
    "  -s, --tls             speak TLS 1.3, and believe every certificate\n"
    "  -x, --reset           close connections with RST instead of FIN\n"
    "  -W, --wait            print \"ready\" and await a line before the measured phase,\n"
    "                        and the end of stdin before closing\n";

static void parse(int argc, char **argv) {
    static const struct option longs[] = {{"connections", 1, 0, 'c'},
                                          {"size", 1, 0, 'm'},
                                          {"seconds", 1, 0, 'd'},
                                          {"warmup", 1, 0, 'w'},
                                          {"rate", 1, 0, 'r'},
                                          {"timeout", 1, 0, 't'},
                                          {"end-crlf", 0, 0, 'e'},
                                          {"reset", 0, 0, 'x'},
                                          {"request", 1, 0, 'q'},
                                          {"pipeline", 1, 0, 'p'},
                                          {"vary", 0, 0, 'v'},
                                          {"tls", 0, 0, 's'},
                                          {"wait", 0, 0, 'W'},
                                          {0, 0, 0, 0}};
    for (int o; (o = getopt_long(argc, argv, "c:m:d:w:r:t:q:p:vsexW", longs, NULL)) != -1;) {
        switch (o) {
        case 'c': options.connections = strtoul(optarg, NULL, 10); break;
        case 'm': options.size = strtoul(optarg, NULL, 10); break;
        case 'd': options.seconds = strtod(optarg, NULL); break;
        case 'w': options.warmup = strtod(optarg, NULL); break;
        case 'r': options.rate = strtod(optarg, NULL); break;
        case 't': options.timeout = strtoul(optarg, NULL, 10) * (SECOND / 1000); break;
        case 'e': options.end = "\r\n\r\n"; break;
        case 'x': options.reset = true; break;
        case 'q': options.request = optarg; break;
        case 'p': options.pipeline = strtoul(optarg, NULL, 10); break;
        case 'v': options.vary = true; break;
        case 's': options.tls = true; break;
        case 'W': options.wait = true; break;
        default: fputs(USAGE, stderr); exit(2);
        }
    }
    if (argc - optind != 2) {
        fputs(USAGE, stderr);
        exit(2);
    }
    size_t mode = 0;
    while (mode < sizeof MODES / sizeof *MODES && strcmp(MODES[mode], argv[optind]))
        mode++;
    if (mode == sizeof MODES / sizeof *MODES)
        die("%s: no such mode", argv[optind]);
    options.mode = (enum mode)mode;
    parse_address(argv[optind + 1]);
    bool datagrams = options.mode == UDP || options.mode == UDP_OPEN;
    if (datagrams && family() == AF_UNIX)
        die("%s needs an internet address", MODES[mode]);
    if (!options.connections)
        die("--connections must be at least 1");
    if (options.size < (datagrams ? sizeof(struct stamp) : 1) + strlen(options.end))
        die("--size is too small: a datagram has 16 bytes of its own, CRLF CRLF 4");
    if (datagrams && options.size > 65507)
        die("--size is too large for a datagram: at most 65507");
    if (options.mode == UDP_OPEN && options.rate <= 0)
        die("udp-open needs --rate");
    if (!options.timeout)
        die("--timeout must be at least 1 ms");
    if (options.pipeline < 1)
        die("--pipeline must be at least 1");
    if (options.mode == HTTP ? !options.request : options.request && options.mode > IDLE)
        die("http needs --request, and UDP has none");
    if (options.mode == TCP && options.request)
        die("requests are sent in the mode http, not tcp");
    if (options.mode != HTTP && options.pipeline > 1)
        die("only http can be pipelined");
    if (options.vary && !options.request)
        die("--vary needs --request");
    if (options.tls && datagrams)
        die("there is no TLS on UDP");
}

int main(int argc, char **argv) {
    parse(argc, argv);
    if (options.request)
        read_request();
    else
        make_message();
    poller = epoll_create1(EPOLL_CLOEXEC);
    open_all();
    if (options.mode != IDLE)
        phase(options.warmup);
    if (options.wait) {
        puts("ready");
        fflush(stdout);
        wait_for_line();
    }
    phase(options.seconds);
    report();
    if (options.wait || options.mode == IDLE)
        while (getchar() != EOF)
            ;
    return 0;
}
