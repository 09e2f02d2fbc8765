/* The floor of the benchmarks: the least that an echo server on epoll can do, in one thread.
 *
 *     floor tcp PORT | floor udp PORT | floor udp-batch PORT
 *
 * Listens on 127.0.0.1, port 0 chooses one; prints "listening PORT". udp-batch moves up to 64
 * datagrams per system call. It has no limits, timeouts or logs: those are what servers add.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 256, READ_SIZE = 256 * 1024, BATCH = 64, DATAGRAM = 65536 };

struct connection {
    int fd;
    char *rest; /* what the peer did not take yet; while there is any, nothing is read */
    size_t left, offset;
};

static int poller;
static char input[READ_SIZE];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int listening(int type, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    socklen_t size = sizeof address;
    int on = 1, fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (type == SOCK_STREAM)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, size))
        die("bind");
    if (type == SOCK_STREAM && listen(fd, 2048))
        die("listen");
    getsockname(fd, (struct sockaddr *)&address, &size);
    printf("listening %d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static void watch(int operation, int fd, void *data, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = data};
    if (epoll_ctl(poller, operation, fd, &event))
        die("epoll_ctl");
}

static void drop(struct connection *c) {
    close(c->fd);
    free(c->rest);
    free(c);
}

static void accept_all(int listener) {
    for (;;) {
        int on = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        watch(EPOLL_CTL_ADD, fd, c, EPOLLIN);
    }
}

static bool flush(struct connection *c) {
    ssize_t n = send(c->fd, c->rest + c->offset, c->left, MSG_NOSIGNAL);
    if (n < 0)
        return errno == EAGAIN;
    c->offset += (size_t)n;
    c->left -= (size_t)n;
    if (!c->left) {
        free(c->rest);
        c->rest = NULL;
        watch(EPOLL_CTL_MOD, c->fd, c, EPOLLIN);
    }
    return true;
}

static bool echo(struct connection *c) {
    ssize_t n = recv(c->fd, input, READ_SIZE, 0);
    if (n <= 0)
        return n < 0 && errno == EAGAIN;
    ssize_t sent = send(c->fd, input, (size_t)n, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN)
            return false;
        sent = 0;
    }
    if (sent < n) {
        c->left = (size_t)(n - sent);
        c->offset = 0;
        c->rest = malloc(c->left);
        memcpy(c->rest, input + sent, c->left);
        watch(EPOLL_CTL_MOD, c->fd, c, EPOLLOUT);
    }
    return true;
}

static void serve_tcp(int port) {
    struct epoll_event events[EVENTS];
    int listener = listening(SOCK_STREAM, port);
    watch(EPOLL_CTL_ADD, listener, NULL, EPOLLIN);
    for (;;) {
        int count = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c)
                accept_all(listener);
            else if (!(c->left ? flush(c) : echo(c)))
                drop(c);
        }
    }
}

static void echo_datagrams(int fd) {
    for (;;) {
        struct sockaddr_storage peer;
        socklen_t size = sizeof peer;
        ssize_t n = recvfrom(fd, input, READ_SIZE, 0, (struct sockaddr *)&peer, &size);
        if (n < 0)
            return;
        sendto(fd, input, (size_t)n, 0, (struct sockaddr *)&peer, size);
    }
}

static void echo_batches(int fd) {
    static char data[BATCH][DATAGRAM];
    static struct sockaddr_storage peers[BATCH];
    struct mmsghdr messages[BATCH];
    struct iovec parts[BATCH];
    for (int count = BATCH; count == BATCH;) {
        for (int i = 0; i < BATCH; i++) {
            parts[i] = (struct iovec){data[i], DATAGRAM};
            messages[i].msg_hdr = (struct msghdr){.msg_name = &peers[i],
                                                  .msg_namelen = sizeof peers[i],
                                                  .msg_iov = &parts[i],
                                                  .msg_iovlen = 1};
        }
        count = recvmmsg(fd, messages, BATCH, 0, NULL);
        for (int i = 0; i < count; i++)
            parts[i].iov_len = messages[i].msg_len;
        for (int sent = 0, n; sent < count; sent += n)
            if ((n = sendmmsg(fd, messages + sent, (unsigned)(count - sent), 0)) <= 0)
                n = 1; /* this one is lost, as datagrams are */
    }
}

static void serve_udp(int port, void (*echo_some)(int)) {
    struct epoll_event event;
    int fd = listening(SOCK_DGRAM, port);
    watch(EPOLL_CTL_ADD, fd, NULL, EPOLLIN);
    for (;;)
        if (epoll_wait(poller, &event, 1, -1) > 0)
            echo_some(fd);
}

int main(int argc, char **argv) {
    int port = argc == 3 ? atoi(argv[2]) : -1;
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (port >= 0 && !strcmp(argv[1], "tcp"))
        serve_tcp(port);
    if (port >= 0 && !strcmp(argv[1], "udp"))
        serve_udp(port, echo_datagrams);
    if (port >= 0 && !strcmp(argv[1], "udp-batch"))
        serve_udp(port, echo_batches);
    fputs("usage: floor tcp|udp|udp-batch PORT\n", stderr);
    return 2;
}
