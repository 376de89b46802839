// Command gojson reads bodies, names, forms and zstd with Ollama's own types and Go's own encoding/json.
//
// It takes one JSON object a line and writes one a line. The module's path is below Ollama's so that it may import
// Ollama's internal packages.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/ollama/ollama/anthropic"
	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/internal/modelref"
	"github.com/ollama/ollama/openai"
	"github.com/ollama/ollama/types/model"
)

type asked struct {
	Kind        string `json:"kind"`
	Path        string `json:"path"`
	Name        string `json:"name"`
	Body        []byte `json:"body"`
	ContentType string `json:"content_type"`
	Query       string `json:"query"`
}

type found struct {
	Error     string   `json:"error,omitempty"` // why the handler answers 400
	Cloud     *string  `json:"cloud,omitempty"` // the model that the cloud check finds
	Model     *string  `json:"model,omitempty"` // the model that the handler finds
	End       int64    `json:"end,omitempty"`   // how many bytes the handler needs to act
	Streams   bool     `json:"streams,omitempty"`
	Tools     bool     `json:"tools,omitempty"`
	WebSearch bool     `json:"web_search,omitempty"`
	Prompt    bool     `json:"prompt,omitempty"`
	Thinking  bool     `json:"thinking,omitempty"` // a model that can't think is refused
	KeepAlive bool     `json:"keep_alive,omitempty"`
	Options   []string `json:"options,omitempty"`
	Canonical string   `json:"canonical,omitempty"` // host/namespace/model:tag, in lower case
	Source    string   `json:"source,omitempty"`    // cloud or local
	Size      int      `json:"size,omitempty"`      // bytes of an unpacked body
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 256<<20)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	encode := json.NewEncoder(out)
	for lines.Scan() {
		var a asked
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			fmt.Fprintln(os.Stderr, "gojson:", err)
			os.Exit(1)
		}
		var f found
		switch a.Kind {
		case "json":
			f = readBody(a.Path, a.Body)
		case "form":
			f = readForm(a)
		case "name":
			f = readName(a.Name)
		case "zstd":
			f = unpack(a.Body)
		}
		if err := encode.Encode(f); err != nil {
			fmt.Fprintln(os.Stderr, "gojson:", err)
			os.Exit(1)
		}
	}
}

// readBody reads a body as the cloud check does, and as the handlers' ShouldBindJSON (gin: json.NewDecoder(body).Decode).
func readBody(path string, body []byte) (f found) {
	f.Cloud = cloudModel(body)
	decoder := json.NewDecoder(bytes.NewReader(body))
	bind := func(to any) bool {
		err := decoder.Decode(to)
		f.End = decoder.InputOffset()
		if err != nil {
			f.Error = err.Error()
		}
		return err == nil
	}
	var name string
	stream := func(asked *bool, otherwise bool) {
		f.Streams = otherwise
		if asked != nil {
			f.Streams = *asked
		}
	}
	native := func(keepAlive *api.Duration, options map[string]any) {
		f.KeepAlive = keepAlive != nil
		for option := range options {
			f.Options = append(f.Options, option)
		}
		slices.Sort(f.Options)
	}
	switch path {
	case "/v1/chat/completions":
		var r openai.ChatCompletionRequest
		bind(&r)
		name, f.Streams, f.Tools, f.Prompt = r.Model, r.Stream, len(r.Tools) > 0, len(r.Messages) > 0
		if r.Reasoning != nil { // as in FromChatRequest
			f.Thinking = effort(r.Reasoning.Effort)
		} else if r.ReasoningEffort != nil {
			f.Thinking = effort(*r.ReasoningEffort)
		}
	case "/v1/responses":
		var r openai.ResponsesRequest
		bind(&r)
		name, f.Tools, f.WebSearch = r.Model, len(r.Tools) > 0, openai.HasWebSearchTool(r.Tools)
		f.Prompt = r.Instructions != "" || r.Input.Text != "" || len(r.Input.Items) > 0
		f.Thinking = effort(r.Reasoning.Effort)
		stream(r.Stream, false)
	case "/v1/messages":
		var r anthropic.MessagesRequest
		bind(&r)
		name, f.Streams, f.Tools, f.Prompt = r.Model, r.Stream, len(r.Tools) > 0, len(r.Messages) > 0
		for _, tool := range r.Tools {
			f.WebSearch = f.WebSearch || strings.HasPrefix(strings.TrimSpace(tool.Type), "web_search")
		}
	case "/v1/completions":
		var r openai.CompletionRequest
		bind(&r)
		name, f.Streams, f.Prompt = r.Model, r.Stream, r.Prompt != ""
	case "/v1/embeddings":
		var r openai.EmbedRequest
		bind(&r)
		name = r.Model
	case "/api/chat":
		var r api.ChatRequest
		bind(&r)
		name, f.Tools, f.Prompt = r.Model, len(r.Tools) > 0, len(r.Messages) > 0
		f.Thinking = r.Think != nil && r.Think.Bool()
		stream(r.Stream, true)
		native(r.KeepAlive, r.Options)
	case "/api/generate":
		var r api.GenerateRequest
		bind(&r)
		name, f.Prompt = r.Model, r.Prompt != ""
		f.Thinking = r.Think != nil && r.Think.Bool()
		stream(r.Stream, true)
		native(r.KeepAlive, r.Options)
	case "/api/embed":
		var r api.EmbedRequest
		bind(&r)
		name = r.Model
		native(r.KeepAlive, r.Options)
	case "/api/embeddings":
		var r api.EmbeddingRequest
		bind(&r)
		name, f.Prompt = r.Model, r.Prompt != ""
		native(r.KeepAlive, r.Options)
	case "/api/show":
		var r api.ShowRequest
		bind(&r)
		name = r.Model
		if name == "" {
			name = r.Name
		}
	}
	if strings.TrimSpace(name) != "" {
		f.Model = &name
	}
	return f
}

func effort(asked string) bool { return asked != "" && asked != "none" }

// cloudModel does what extractModelField in server/cloud_proxy.go does.
func cloudModel(body []byte) *string {
	var fields map[string]json.RawMessage
	var name string
	if json.Unmarshal(body, &fields) != nil {
		return nil
	}
	raw, ok := fields["model"]
	if !ok || json.Unmarshal(raw, &name) != nil || strings.TrimSpace(name) == "" {
		return nil
	}
	name = strings.TrimSpace(name)
	return &name
}

// readForm does what TranscriptionMiddleware in middleware/openai.go does.
func readForm(a asked) (f found) {
	request := httptest.NewRequest(http.MethodPost, "/v1/audio/transcriptions?"+a.Query, bytes.NewReader(a.Body))
	request.Header.Set("Content-Type", a.ContentType)
	if err := request.ParseMultipartForm(25 << 20); err != nil {
		return found{Error: err.Error()}
	}
	if name := request.FormValue("model"); name != "" {
		f.Model = &name
	}
	return f
}

// readName does what parseAndValidateModelRef in server/model_resolver.go does.
func readName(raw string) found {
	ref, err := modelref.ParseRef(raw)
	if err != nil {
		return found{Error: err.Error()}
	}
	name := model.ParseName(ref.Base)
	if !name.IsValid() {
		return found{Error: "unqualified name"}
	}
	source := map[modelref.ModelSource]string{modelref.ModelSourceCloud: "cloud", modelref.ModelSourceLocal: "local"}
	return found{Canonical: strings.ToLower(name.String()), Source: source[ref.Source]}
}

// unpack does what cloudPassthroughMiddleware in server/cloud_proxy.go does.
func unpack(body []byte) found {
	reader, err := zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderMaxMemory(8<<20))
	if err != nil {
		return found{Error: err.Error()}
	}
	defer reader.Close()
	limited := http.MaxBytesReader(httptest.NewRecorder(), io.NopCloser(reader), 20<<20)
	unpacked, err := io.ReadAll(limited)
	if err != nil {
		return found{Error: err.Error()}
	}
	return found{Size: len(unpacked)}
}
