// update times the loop a[i] += s*b[i] over two vectors of N float32, cut
// among THREADS threads: the plainest loop that reads and writes memory as
// update rules do, 12 bytes an element. For every line read it makes one pass
// and prints its seconds; after the last it ends.
//
//	cc -O3 -march=native -pthread -o update update.c && yes | head -9 | ./update 16777216 1
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { maxThreads = 64 };

static float *a, *b;
static long n;
static int threads;
static pthread_barrier_t go, done;

static void part(int i) {
	long lo = n / threads * i, hi = i == threads - 1 ? n : n / threads * (i + 1);
	const float s = 1e-9f;
	float *restrict x = a;
	const float *restrict y = b;
	for (long j = lo; j < hi; j++)
		x[j] += s * y[j];
}

static void *run(void *i) {
	for (;;) {
		pthread_barrier_wait(&go);
		part((int)(long)i);
		pthread_barrier_wait(&done);
	}
	return NULL;
}

static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + 1e-9 * t.tv_nsec;
}

int main(int argc, char **argv) {
	if (argc != 3 || (n = atol(argv[1])) < 1 || (threads = atoi(argv[2])) < 1 || threads > maxThreads) {
		fprintf(stderr, "usage: update N THREADS\n");
		return 2;
	}
	a = aligned_alloc(4096, (n * sizeof(float) + 4095) / 4096 * 4096);
	b = aligned_alloc(4096, (n * sizeof(float) + 4095) / 4096 * 4096);
	if (!a || !b) {
		fprintf(stderr, "update: no memory\n");
		return 1;
	}
	for (long i = 0; i < n; i++)
		a[i] = 1, b[i] = 1;
	pthread_barrier_init(&go, NULL, threads);
	pthread_barrier_init(&done, NULL, threads);
	for (long i = 1; i < threads; i++) {
		pthread_t t;
		if (pthread_create(&t, NULL, run, (void *)i)) {
			fprintf(stderr, "update: no thread\n");
			return 1;
		}
	}
	for (int c; (c = getchar()) != EOF;) {
		if (c != '\n')
			continue;
		double start = now();
		pthread_barrier_wait(&go);
		part(0);
		pthread_barrier_wait(&done);
		printf("%.9f\n", now() - start);
		fflush(stdout);
	}
	return 0;
}
