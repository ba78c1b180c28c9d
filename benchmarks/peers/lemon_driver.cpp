// LEMON's Gomory-Hu tree and preflow-push on a graph from a binary file; prints the solver's own CPU seconds and the answer.
//   lemon_driver tree FILE | lemon_driver flow FILE S T
// FILE: int64 n, m; int32 tail[m]; int32 head[m]; float64 capacity[m]. Undirected. Reading and building are not timed.
#include <lemon/gomory_hu.h>
#include <lemon/preflow.h>
#include <lemon/smart_graph.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

using namespace lemon;

static void read(void* out, size_t bytes, std::FILE* f) {
    if (std::fread(out, 1, bytes, f) != bytes) std::fprintf(stderr, "the file is too short\n"), std::exit(2);
}

int main(int argc, char** argv) {
    const bool flow = argc == 5 && !std::strcmp(argv[1], "flow");
    if (!flow && !(argc == 3 && !std::strcmp(argv[1], "tree"))) return std::fprintf(stderr, "usage: see source\n"), 2;
    std::FILE* f = std::fopen(argv[2], "rb");
    if (!f) return std::perror(argv[2]), 2;
    int64_t size[2];
    read(size, sizeof size, f);
    const size_t m = size_t(size[1]);
    std::vector<int32_t> tail(m), head(m);
    std::vector<double> capacity(m);
    read(tail.data(), 4 * m, f), read(head.data(), 4 * m, f), read(capacity.data(), 8 * m, f);
    std::fclose(f);
    SmartGraph g;
    std::vector<SmartGraph::Node> node;
    for (int64_t i = 0; i < size[0]; ++i) node.push_back(g.addNode());
    SmartGraph::EdgeMap<double> weight(g);
    for (size_t i = 0; i < m; ++i) weight[g.addEdge(node[tail[i]], node[head[i]])] = capacity[i];
    auto now = [] {
        timespec t;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
        return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
    };
    const double start = now();
    auto seconds = [&] { return now() - start; };
    if (flow) {
        // An undirected edge of a graph is two arcs, each with the edge's capacity.
        SmartGraph::ArcMap<double> both(g);
        for (SmartGraph::ArcIt a(g); a != INVALID; ++a) both[a] = weight[a];
        const auto built = seconds();
        Preflow<SmartGraph, SmartGraph::ArcMap<double>> solver(g, both, node[std::atol(argv[3])],
                                                               node[std::atol(argv[4])]);
        solver.runMinCut();
        std::printf("%.17g\n%.17g\n", seconds() - built, double(solver.flowValue()));
        return 0;
    }
    GomoryHu<SmartGraph, SmartGraph::EdgeMap<double>> solver(g, weight);
    solver.run();
    std::printf("%.17g\n", seconds());
    for (int64_t i = 0; i < size[0]; ++i)
        if (solver.predNode(node[i]) != INVALID) std::printf("%.17g\n", double(solver.predValue(node[i])));
}
