/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The benchmark's traffic.
 *
 *   send udp ADDRESS SIZE COUNT RATE       COUNT datagrams of SIZE bytes to port 9; RATE per second, 0: as fast as it goes;
 *                                          the first one before "ready"
 *   send fork ADDRESS COUNT RATE           COUNT processes of one small datagram each, RATE per second; the first one
 *                                          before "ready"
 *   send threads ADDRESS COUNT THREADS     COUNT small datagrams by THREADS threads, one after another; each sends one before
 *   send spread COUNT DEVICES              COUNT small datagrams in turn to 10.92.0.2, 10.92.1.2, ... (wire.py)
 *   send tcp ADDRESS MIB                   MIB MiB to port 9
 *   send sink ADDRESS                      takes connections on port 9 and reads them; swallows datagrams, so that no ICMP
 *                                          error answers each
 *
 * Prints "ready", waits for a line, sends, prints "failed seconds". threads and spread send COUNT again for each
 * further line.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SMALL 22 /* bytes: a frame of 64 */

static char payload[1 << 17];
static int failed;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void wait_until(double time)
{
	double left = time - now();

	if (left > 0) {
		struct timespec pause = {.tv_nsec = left * 1e9};
		nanosleep(&pause, NULL);
	}
}

static int open_to(const char *address, int type)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
	int end_point = socket(AF_INET, type, 0);

	if (inet_pton(AF_INET, address, &to.sin_addr) != 1 || connect(end_point, (void *)&to, sizeof(to))) {
		perror(address);
		exit(2);
	}
	return end_point;
}

/* Says that it is ready, and waits for the word to begin. */
static double begin(void)
{
	char line[8];

	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		exit(2);
	return now();
}

/* Prints the result; returns whether a further line asks for the same once more. */
static int is_asked_again(double *start)
{
	char line[8];

	printf("%d %.6f\n", failed, now() - *start);
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 0;
	failed = 0;
	*start = now();
	return 1;
}

/* From number `from` to `count`. */
static void send_udp(int end_point, int size, int from, int count, int rate, double start)
{
	for (int i = from; i < count; i++) {
		if (rate && i % (rate / 1000 ? rate / 1000 : 1) == 0)
			wait_until(start + (double)i / rate);
		failed += send(end_point, payload, size, 0) < 0;
	}
}

static void send_forked(const char *address, int from, int count, int rate, double start)
{
	for (int i = from; i < count; i++) {
		wait_until(start + (double)i / rate);
		pid_t child = fork();

		if (!child)
			_exit(send(open_to(address, SOCK_DGRAM), payload, SMALL, 0) < 0);
		int status = 1;

		waitpid(child, &status, 0);
		failed += status != 0;
	}
}

/* Each thread waits at a semaphore of its own: a condition for all would wake thousands at each turn. */
static struct {
	sem_t *turns, over;
	int end_point, count;
} ring;

static void *send_in_turn(void *number)
{
	for (int count = 1;; count = ring.count) {
		sem_wait(&ring.turns[(long)number]);
		for (int i = 0; i < count; i++)
			failed += send(ring.end_point, payload, SMALL, 0) < 0;
		sem_post(&ring.over);
	}
}

static void give_turn(int number)
{
	sem_post(&ring.turns[number]);
	sem_wait(&ring.over);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	double start;

	if (!strcmp(what, "udp") && argc == 6) {
		int end_point = open_to(argv[2], SOCK_DGRAM);

		send_udp(end_point, atoi(argv[3]), 0, 1, 0, 0);
		start = begin();
		send_udp(end_point, atoi(argv[3]), 1, atoi(argv[4]), atoi(argv[5]), start);
	} else if (!strcmp(what, "fork") && argc == 5) {
		send_forked(argv[2], 0, 1, 1, 0);
		start = begin();
		send_forked(argv[2], 1, atoi(argv[3]), atoi(argv[4]), start);
	} else if (!strcmp(what, "threads") && argc == 5) {
		int threads = atoi(argv[4]);
		pthread_attr_t small;

		ring.turns = calloc(threads, sizeof(sem_t));
		ring.end_point = open_to(argv[2], SOCK_DGRAM);
		ring.count = atoi(argv[3]) / threads;
		pthread_attr_init(&small);
		pthread_attr_setstacksize(&small, 1 << 16);
		for (long i = 0; i < threads; i++) {
			pthread_t thread;

			if (sem_init(&ring.turns[i], 0, 0) ||
			    pthread_create(&thread, &small, send_in_turn, (void *)i))
				return 2;
			give_turn(i);
		}
		start = begin();
		do {
			for (int i = 0; i < threads; i++)
				give_turn(i);
		} while (is_asked_again(&start));
		return 0;
	} else if (!strcmp(what, "spread") && argc == 4) {
		int devices = atoi(argv[3]), *end_points = calloc(devices, sizeof(int));
		char address[32];

		for (int i = 0; i < devices; i++) {
			snprintf(address, sizeof(address), "10.%d.%d.2", 92 + i / 250, i % 250);
			end_points[i] = open_to(address, SOCK_DGRAM);
			send(end_points[i], payload, SMALL, 0);
		}
		start = begin();
		do {
			for (int i = 0; i < atoi(argv[2]); i++)
				failed += send(end_points[i % devices], payload, SMALL, 0) < 0;
		} while (is_asked_again(&start));
		return 0;
	} else if (!strcmp(what, "tcp") && argc == 4) {
		int end_point = open_to(argv[2], SOCK_STREAM);
		long left = atol(argv[3]) << 20;

		start = begin();
		while (left > 0) {
			long sent = send(end_point, payload,
					 left < (long)sizeof(payload) ? left : (long)sizeof(payload), 0);

			if (sent <= 0)
				return 2;
			left -= sent;
		}
		shutdown(end_point, SHUT_WR);
		recv(end_point, payload, 1, 0); /* all is there */
	} else if (!strcmp(what, "sink") && argc == 3) {
		struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(9)};
		int server = socket(AF_INET, SOCK_STREAM, 0), one = 1;
		int swallow = socket(AF_INET, SOCK_DGRAM, 0);

		setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (inet_pton(AF_INET, argv[2], &at.sin_addr) != 1 || bind(server, (void *)&at, sizeof(at)) ||
		    listen(server, 8) || bind(swallow, (void *)&at, sizeof(at)))
			return 2;
		puts("ready");
		fflush(stdout);
		for (;;) {
			int end_point = accept(server, NULL, NULL);

			while (recv(end_point, payload, sizeof(payload), 0) > 0)
				;
			close(end_point);
		}
	} else {
		return 2;
	}
	printf("%d %.6f\n", failed, now() - start);
	return 0;
}
