/* SPDX-License-Identifier: GPL-2.0-only */
/* send ADDRESS SIZE COUNT: COUNT datagrams of SIZE bytes to port 9 from one connected UDP socket, as fast as it goes. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

int main(int argc, char **argv)
{
	static char payload[65536];
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
	struct timespec start, end;
	int size, count, failed = 0;

	if (argc != 4 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1)
		return 2;
	size = atoi(argv[2]);
	count = atoi(argv[3]);
	int end_point = socket(AF_INET, SOCK_DGRAM, 0);
	if (size < 0 || size > (int)sizeof(payload) || connect(end_point, (void *)&to, sizeof(to)))
		return 2;
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (int i = 0; i < count; i++)
		failed += send(end_point, payload, size, 0) < 0;
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%d %.6f\n", failed, (end.tv_sec - start.tv_sec) + (end.tv_nsec - start.tv_nsec) / 1e9);
	return 0;
}
