package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// TestVocabulary wants every word to have a meaning, and to be there once.
func TestVocabulary(t *testing.T) {
	for _, term := range Vocabulary() {
		seen := make(map[string]bool)
		for _, w := range term.Words {
			if w.Name == "" || w.Meaning == "" || seen[w.Name] {
				t.Errorf("%s: %+v", term.Name, w)
			}
			seen[w.Name] = true
			if err := IsWord(term.Name, w.Name); err != nil {
				t.Error(err)
			}
		}
		if len(seen) < 2 {
			t.Errorf("%s: %d words", term.Name, len(seen))
		}
		if IsWord(term.Name, "5") == nil {
			t.Errorf("%s: 5 is a word", term.Name)
		}
	}
}

// TestLogWords parses the log lines of all events, and compares each value with the list.
func TestLogWords(t *testing.T) {
	at := netip.MustParseAddrPort
	master := &expect.Master{Tuples: [2]expect.Tuple{
		{Src: at("203.0.113.101:40000"), Dst: at("192.0.2.2:21")}, {Src: at("192.168.1.2:21"), Dst: at("203.0.113.101:40000")},
	}}
	free := map[string]bool{"time": true, "level": true, "msg": true, "why": true, "line": true,
		"client": true, "server": true, "announced": true, "advertised": true, "expected_at": true}
	for kind := range numKinds {
		for verb := parse.PORT; verb.Announces(); verb++ {
			for _, reason := range Reasons() {
				var text bytes.Buffer
				ev := Event{Kind: kind, Master: master, Verb: verb, Line: []byte("x"), Announced: at("192.168.1.2:30000"),
					Advertised: at("192.0.2.2:30000"), Expected: at("192.0.2.2:30000"), Reason: reason, Err: errors.New("x")}
				ev.Log(slog.New(slog.NewJSONHandler(&text, nil)), slog.LevelInfo)
				var line map[string]any
				if err := json.Unmarshal(text.Bytes(), &line); err != nil {
					t.Fatalf("%s: %v", &text, err)
				}
				for key, value := range line {
					word, ok := value.(string)
					if !ok {
						t.Errorf("%s has no word: %s", key, &text)
						continue
					}
					if err := IsWord(key, word); err != nil {
						t.Errorf("%v: %s", err, &text)
					}
					if !free[key] && IsWord(key, "") == nil {
						t.Errorf("%s is no term: %s", key, &text)
					}
				}
				if !strings.Contains(text.String(), `"kind":"`+kind.String()+`"`) {
					t.Errorf("no kind: %s", &text)
				}
			}
		}
	}
}
