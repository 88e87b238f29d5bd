{{/*
What NOTES.txt tells beside the next steps, as JSON: {warnings, notes}.

Rules: a warning is about images that will be refused, or admitted by other certificates than was meant; a note is about a
value that is deprecated or without effect. Each says what to write instead.
*/}}

{{/* Things that resources ask for and this version of the provider does not have yet, as JSON: {list}. */}}
{{- define "countersign.notYet" -}}
{{- $list := list }}
{{- if include "countersign.cosignMode" . }}{{ $list = append $list "cosign signatures" }}{{ end }}
{{- if .Values.vulnerabilityreport.enabled }}{{ $list = append $list "vulnerability reports" }}{{ end }}
{{- if .Values.sbom.enabled }}{{ $list = append $list "software bills of material" }}{{ end }}
{{- $auth := (include "countersign.authProviders" . | fromJson).list }}
{{- range $auth }}
{{- if eq .name "alibabacloudAcrBasic" }}{{ $list = append $list (printf "registry credentials of type %s" .name) }}{{ end }}
{{- end }}
{{- dict "list" $list | toJson }}
{{- end }}

{{- define "countersign.notes" -}}
{{- $warnings := list }}
{{- $notes := list }}
{{- $fullname := include "countersign.fullname" . }}

{{- /* What is trusted. */}}
{{- $providers := (include "countersign.certificates" . | fromJson).providers }}
{{- if not .Values.notation.enabled }}
{{- if $providers }}
{{- $warnings = append $warnings "notation.enabled is false: the certificates that were given verify nothing." }}
{{- end }}
{{- else }}
{{- $trust := include "countersign.trust" . | fromJson }}
{{- if not $trust.verify }}
{{- $warnings = append $warnings "No certificate was given, so there is no Verifier for Notary Project signatures. Give one with --set-file notationCerts[0]=FILE or azurekeyvault, or apply a Verifier of your own." }}
{{- end }}
{{- range $providers }}
{{- if not (has .name $trust.used) }}
{{- $warnings = append $warnings (printf "%s is used by no trust policy. Add it to notation.trustPolicies[<i>].trustStores, as ca:%s for a root of signing certificates or tsa:%s for the root of a time-stamp authority, or leave it out." .value .value .value) }}
{{- end }}
{{- end }}
{{- range $trust.twice }}
{{- $warnings = append $warnings (printf "%s repeats %s. If it was meant for time-stamps, write tsa: and the certificate of the time-stamp authority, such as tsa:notationCerts[0]." .path .reference) }}
{{- end }}
{{- range $index, $policy := .Values.notation.trustPolicies }}
{{- if and (hasKey $policy "verificatonLevel") (not $policy.level) (ne (toString $policy.verificatonLevel) "strict") }}
{{- $warnings = append $warnings (printf "notation.trustPolicies[%d].verificatonLevel has no effect, as in Ratify: the level is strict. Write level." $index) }}
{{- end }}
{{- end }}
{{- end }}
{{- if not (or (include "countersign.verifiesNotation" .) (include "countersign.cosignMode" .)) }}
{{- $warnings = append $warnings "Nothing verifies signatures yet: the provider is not ready and every image is refused until there is a Verifier (installing with --wait or --atomic does not end well)." }}
{{- end }}
{{- with (include "countersign.notYet" . | fromJson).list }}
{{- $warnings = append $warnings (printf "This version does not support yet: %s. The status of the resources says so, and what depends on them is refused." (join ", " .)) }}
{{- end }}

{{- /* The way there. */}}
{{- $times := .Values.provider.timeout }}
{{- $open := "the API server stops waiting before Gatekeeper does, and with the failure policy Ignore, Gatekeeper's default," }}
{{- if ge (int $times.validationTimeoutSeconds) 5 }}
{{- $warnings = append $warnings (printf "provider.timeout.validationTimeoutSeconds is %d. Unless Gatekeeper's validatingWebhookTimeoutSeconds is greater, %s a provider that hangs lets unsigned images in. Write 4 where Gatekeeper has 5." (int $times.validationTimeoutSeconds) $open) }}
{{- end }}
{{- if and .Values.provider.enableMutation (ge (int $times.mutationTimeoutSeconds) 2) }}
{{- $warnings = append $warnings (printf "provider.timeout.mutationTimeoutSeconds is %d. Unless Gatekeeper's mutatingWebhookTimeoutSeconds is greater, %s a provider that hangs lets pods pass with their tags. Write 1 where Gatekeeper has 2." (int $times.mutationTimeoutSeconds) $open) }}
{{- end }}
{{- if .Values.oras.useHttp }}
{{- $warnings = append $warnings "oras.useHttp is on: whoever is on the way to the registry decides which signatures are seen. For trials only; for one registry write oras.registries[0].plainHttp." }}
{{- end }}
{{- $clients := .Values.provider.clientAuth }}
{{- $gatekeeper := include "countersign.gatekeeperNamespace" . }}
{{- if not (or $clients.required $clients.caBundle $clients.caCerts) }}
{{- if not $clients.gatekeeperSecret }}
{{- $warnings = append $warnings "Callers need no certificate: whoever reaches the Service can ask about images. Set provider.clientAuth." }}
{{- else if ne .Release.Namespace $gatekeeper }}
{{- $warnings = append $warnings (printf "Callers need no certificate as long as there is no Secret %s in %s: Gatekeeper is in %s. Give its CA with --set-file provider.clientAuth.caBundle=FILE, made by: kubectl get secret %s -n %s -o jsonpath='{.data.ca\\.crt}' | base64 -d" $clients.gatekeeperSecret .Release.Namespace $gatekeeper $clients.gatekeeperSecret $gatekeeper) }}
{{- end }}
{{- end }}

{{- /* Deprecated, or without effect. */}}
{{- if .Values.notationCert }}{{ $notes = append $notes "notationCert is deprecated: write notationCerts[0]." }}{{ end }}
{{- if (.Values.akvCertConfig | default dict).enabled }}{{ $notes = append $notes "akvCertConfig is deprecated: write azurekeyvault." }}{{ end }}
{{- if .Values.cosign.key }}{{ $notes = append $notes "cosign.key is deprecated: write cosignKeys[0]." }}{{ end }}
{{- if or (eq .Values.provider.cache.type "dapr") .Values.provider.cache.name }}
{{- $notes = append $notes "provider.cache.type=dapr and provider.cache.name have no effect: each pod keeps its own verdicts, and several pods need nothing shared." }}
{{- end }}
{{- if or (not .Values.oras.cache.enabled) (ne (int .Values.oras.cache.ttl) 10) }}
{{- $notes = append $notes "oras.cache has no effect: what is content-addressed is always kept, verdicts for provider.cache.ttl." }}
{{- end }}
{{- if not .Values.crl.cache.enabled }}{{ $notes = append $notes "crl.cache.enabled=false has no effect: revocation lists are kept in memory until their next update." }}{{ end }}
{{- range $flag, $on := omit .Values.featureFlags "RATIFY_CERT_ROTATION" }}
{{- if $on }}{{ $notes = append $notes (printf "featureFlags.%s has no effect." $flag) }}{{ end }}
{{- end }}
{{- if has (lower .Values.logger.formatter) (list "logstash") }}{{ $notes = append $notes "logger.formatter=logstash is taken for json." }}{{ end }}
{{- dict "warnings" $warnings "notes" $notes | toJson }}
{{- end }}
